//! Sends the messages of a request to their rooms and collects the results.

use super::{AddressedPublication, PublishRequest, parse, read_results, results_json};
use crate::http::authorize;
use crate::http::entry::Handler;
use crate::http::response::{HandlerResult, internal, json_response};
use crate::runtime::log::log_error;
use futures_util::{StreamExt, stream};
use roomcast_proto::access::{Identity, Rights};
use roomcast_proto::error::{Error, Result};
use roomcast_proto::id::RoomName;
use roomcast_proto::reader;
use roomcast_proto::retry::MAX_REQUESTS;
use roomcast_room::service::{Publication, Request as ServiceRequest};

impl Handler<'_> {
    /// `POST /publish`.
    pub(in crate::http) async fn publish(&self) -> HandlerResult {
        let identity = self.authenticate("").await?;
        if !identity.service {
            let error = Error::forbidden("a token with role `service` is required");
            return Err(self.reject("auth", "", error));
        }
        let body = self.body().await;
        let request = body
            .and_then(|body| parse(&body))
            .map_err(|error| self.reject("malformed", "", error))?;
        match request {
            PublishRequest::One(message) => {
                let mut results = self.publish_all(&identity, vec![Ok(message)]).await;
                match results.pop() {
                    Some(Ok(receipt)) => json_response(200, receipt.into_bytes()),
                    Some(Err(error)) => Err(error.into()),
                    None => Err(internal("a publication without a result")),
                }
            }
            PublishRequest::Many(messages) => {
                let results = self.publish_all(&identity, messages).await;
                json_response(200, results_json(&results).into_bytes())
            }
        }
    }

    /// Publishes each message to its room. The messages of one room are sent in one request, in
    /// their order. Returns the result of each message, in the order of `messages`.
    async fn publish_all(
        &self,
        identity: &Identity,
        messages: Vec<Result<AddressedPublication>>,
    ) -> Vec<Result<String>> {
        let default_rooms = &self.config.auth.default_rooms;
        let mut results: Vec<Result<String>> = Vec::with_capacity(messages.len());
        let mut rooms: Vec<(RoomName, Vec<(usize, Publication)>)> = Vec::new();
        for (index, message) in messages.into_iter().enumerate() {
            let authorized = message.and_then(|message| {
                let room = &message.room;
                authorize::require_service(identity, Rights::WRITE, default_rooms, room)
                    .inspect_err(|error| {
                        self.reject("auth", room, error.clone());
                    })?;
                Ok(message)
            });
            match authorized {
                Ok(AddressedPublication { room, publication }) => {
                    match rooms.iter_mut().find(|(one, _)| *one == room) {
                        Some((_, publications)) => publications.push((index, publication)),
                        None => rooms.push((room, vec![(index, publication)])),
                    }
                    // A placeholder, which the answer of the room replaces.
                    results.push(Err(Error::internal()));
                }
                Err(error) => results.push(Err(error)),
            }
        }
        let mut calls = stream::iter(rooms)
            .map(|(room, publications)| async move {
                let (indexes, messages): (Vec<usize>, Vec<Publication>) =
                    publications.into_iter().unzip();
                let request = ServiceRequest::Publish {
                    sender: identity.user.clone(),
                    info: identity.info.clone(),
                    messages,
                };
                (indexes, self.publish_to_room(&room, &request).await)
            })
            .buffer_unordered(MAX_REQUESTS);
        while let Some((indexes, answer)) = calls.next().await {
            match answer {
                Ok(answer) => {
                    for (index, result) in indexes.into_iter().zip(answer) {
                        results[index] = result;
                    }
                }
                Err(error) => {
                    for index in indexes {
                        results[index] = Err(error.clone());
                    }
                }
            }
        }
        results
    }

    /// Returns the results of the publications to one room.
    async fn publish_to_room(
        &self,
        room: &str,
        request: &ServiceRequest,
    ) -> Result<Vec<Result<String>>> {
        let (status, body) = self.call_room(room, None, request).await?;
        if status >= 400 {
            return Err(reader::from_str(&body).unwrap_or_else(|_| Error::internal()));
        }
        read_results(&body).map_err(|error| {
            log_error(error);
            Error::internal()
        })
    }
}
