//! Requests over HTTP: of services, and the reads of users.

use super::RoomObject;
use crate::runtime::Result;
use crate::runtime::headers;
use crate::runtime::rpc::{RequestError, refuse};
use crate::runtime::time::now;
use futures_channel::oneshot::{self, Receiver, Sender};
use roomcast_proto::error::Error as ClientError;
use roomcast_proto::reader;
use roomcast_room::CallId;
use roomcast_room::service::{Request as ServiceRequest, Served};
use std::collections::HashMap;
use std::rc::Rc;
use worker::{Request, Response, ResponseBuilder};

/// The answer to a request: JSON, or an error.
type Answer = Result<String, ClientError>;

/// Requests that are answered when their batch is stored.
#[derive(Default)]
pub(super) struct PendingCalls {
    last: CallId,
    waiting: HashMap<CallId, Sender<Answer>>,
}

impl PendingCalls {
    /// Returns a new id.
    fn next_id(&mut self) -> CallId {
        self.last.0 += 1;
        self.last
    }

    /// Returns the receiver of the answer to a request. It is cancelled if the room panics.
    fn wait(&mut self, call: CallId) -> Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.insert(call, sender);
        receiver
    }

    /// Answers a request.
    pub(super) fn answer(&mut self, call: CallId, json: String) {
        if let Some(sender) = self.waiting.remove(&call) {
            // Fails only if the service has aborted the request.
            let _ = sender.send(Ok(json));
        }
    }

    /// Answers all requests with an error.
    pub(super) fn fail(&mut self, error: &ClientError) {
        for (_, sender) in self.waiting.drain() {
            // Fails only if the service has aborted the request.
            let _ = sender.send(Err(error.clone()));
        }
    }
}

/// The state of a request after the room has handled it.
enum Reply {
    /// The answer is known.
    Now { json: String, created: bool },
    /// The answer follows the batch.
    Later(Receiver<Answer>),
}

impl RoomObject {
    /// Handles the request of a service, which the Worker has authorized.
    pub(super) async fn handle_service(
        self: &Rc<Self>,
        name: Option<String>,
        mut request: Request,
    ) -> Result<Response> {
        let reader = request.headers().get(headers::READER)?;
        let request: ServiceRequest = reader::from_str(&request.text().await?)?;
        let reply = self.host.with_active(name, |active, state| {
            if let Some(reader) = &reader {
                active.room.admit_reader(reader, now())?;
            }
            active.apply_retention();
            let call = active.calls.next_id();
            let mut out = Vec::new();
            let served = active.room.serve(request, call, now(), &mut out);
            active.run(state, out);
            let reply = match served {
                Err(error) => Err(RequestError::Refused(error)),
                Ok(_) if active.storage_failed => Err(ClientError::internal().into()),
                Ok(Served::Now(json)) => Ok(Reply::Now {
                    json,
                    created: false,
                }),
                Ok(Served::Created(json)) => Ok(Reply::Now {
                    json,
                    created: true,
                }),
                Ok(Served::Later) => Ok(Reply::Later(active.calls.wait(call))),
                Ok(Served::Page(range)) => active
                    .store
                    .page(range, active.room.floor())
                    .map(|page| Reply::Now {
                        json: page.finish(active.room.bounds().head, active.room.epoch()),
                        created: false,
                    })
                    .map_err(RequestError::Failed),
            }?;
            if let (Some(reader), Reply::Now { json, .. }) = (&reader, &reply) {
                active.room.reader_answered(reader, json.len());
            }
            Ok(reply)
        })?;
        self.continue_batch()?;
        let answer = match reply {
            Ok(Reply::Now { json, created }) => Ok((json, if created { 201 } else { 200 })),
            Ok(Reply::Later(answer)) => answer
                .await
                .unwrap_or_else(|_| Err(ClientError::internal()))
                .map(|json| (json, 200)),
            Err(RequestError::Refused(error)) => Err(error),
            Err(RequestError::Failed(error)) => return Err(error),
        };
        match answer {
            Ok((json, status)) => Ok(ResponseBuilder::new()
                .with_status(status)
                .fixed(json.into_bytes())),
            Err(error) => refuse(&error),
        }
    }
}
