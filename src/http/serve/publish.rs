//! `POST /publish`: each message to its room, and an answer for each.

use super::Call;
use super::answer::{Handled, answer_json, failed};
use crate::http::publish::{self, Addressed};
use crate::runtime::rpc::read;
use futures_util::{StreamExt, stream};
use roomcast_proto::access::{Identity, Rights};
use roomcast_proto::error::{Error, Result};
use roomcast_proto::event;
use roomcast_proto::id::RoomName;
use roomcast_room::service::{Publication, Request as ServiceRequest};
use serde::Deserialize;

/// Objects that a Worker may be talking to at once: the platform's limit of
/// outgoing connections is 6.
const MAX_CALLS: usize = 6;

impl Call<'_> {
    pub(super) async fn publish(self) -> Handled {
        let identity = self.identity("").await?;
        if !identity.service {
            let error = Error::forbidden("this needs a token with role `service`");
            return Err(self.reject("auth", "", error));
        }
        let body = self.body().await;
        let body = body
            .and_then(|body| publish::parse(&body))
            .map_err(|error| self.reject("malformed", "", error))?;
        match body {
            publish::Body::One(message) => {
                let mut answers = self.publish_all(&identity, vec![Ok(message)]).await;
                match answers.pop() {
                    Some(Ok(answer)) => answer_json(200, answer.into_bytes()),
                    Some(Err(error)) => Err(error.into()),
                    None => Err(failed("no answer")),
                }
            }
            publish::Body::Many(messages) => {
                let answers: Vec<String> = self
                    .publish_all(&identity, messages)
                    .await
                    .into_iter()
                    .map(|answer| {
                        answer.unwrap_or_else(|error| {
                            format!(r#"{{"error":{}}}"#, event::error_fields(&error))
                        })
                    })
                    .collect();
                let json = format!(r#"{{"results":[{}]}}"#, answers.join(","));
                answer_json(200, json.into_bytes())
            }
        }
    }

    /// Publishes each message to its room, those of one room in one request and
    /// in order. Answers them one by one, in the order they came.
    async fn publish_all(
        &self,
        identity: &Identity,
        messages: Vec<Result<Addressed>>,
    ) -> Vec<Result<String>> {
        let mut answers: Vec<Result<String>> = Vec::with_capacity(messages.len());
        let mut rooms: Vec<(RoomName, Vec<(usize, Publication)>)> = Vec::new();
        for (index, message) in messages.into_iter().enumerate() {
            let allowed = message.and_then(|message| {
                if let Err(error) = identity.require_service(&message.room, Rights::WRITE) {
                    self.reject("auth", &message.room, error.clone());
                    return Err(error);
                }
                Ok(message)
            });
            match allowed {
                Ok(Addressed { room, publication }) => {
                    match rooms.iter_mut().find(|(one, _)| *one == room) {
                        Some((_, publications)) => publications.push((index, publication)),
                        None => rooms.push((room, vec![(index, publication)])),
                    }
                    // Until its room has answered.
                    answers.push(Err(Error::internal()));
                }
                Err(error) => answers.push(Err(error)),
            }
        }
        let mut calls = stream::iter(rooms)
            .map(|(room, publications)| async move {
                let (places, messages): (Vec<usize>, Vec<Publication>) =
                    publications.into_iter().unzip();
                let request = ServiceRequest::Publish {
                    sender: identity.user.clone(),
                    messages,
                };
                (places, self.published(&room, &request).await)
            })
            .buffer_unordered(MAX_CALLS);
        while let Some((places, published)) = calls.next().await {
            match published {
                Ok(published) => {
                    for (place, answer) in places.into_iter().zip(published) {
                        answers[place] = answer;
                    }
                }
                Err(error) => {
                    for place in places {
                        answers[place] = Err(error.clone());
                    }
                }
            }
        }
        answers
    }

    /// The answers of one room to its publications.
    async fn published(&self, room: &str, request: &ServiceRequest) -> Result<Vec<Result<String>>> {
        #[derive(Deserialize)]
        struct Failed {
            error: Error,
        }
        let internal = |_| Error::internal();
        let response = self.ask(room, request).await.map_err(internal)?;
        let (status, body) = read(&response)
            .await
            .map_err(|error| internal(failed(error)))?;
        if status >= 400 {
            return Err(serde_json::from_str(&body).unwrap_or_else(|_| Error::internal()));
        }
        let answers: Vec<Box<serde_json::value::RawValue>> =
            serde_json::from_str(&body).map_err(|error| internal(failed(error)))?;
        Ok(answers
            .into_iter()
            .map(
                |answer| match serde_json::from_str::<Failed>(answer.get()) {
                    Ok(failed) => Err(failed.error),
                    Err(_) => Ok(answer.get().to_owned()),
                },
            )
            .collect())
    }
}
