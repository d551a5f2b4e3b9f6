//! Requests for the records of clients that resume; see [`roomcast_gateway::SavedClient`]. An
//! empty answer means that nothing is stored.

use super::{ActiveGateway, GatewayObject};
use crate::runtime::Result;
use crate::runtime::headers;
use crate::runtime::log::log_error;
use crate::runtime::rpc::gateways::FindRequest;
use crate::runtime::rpc::{GATEWAYS, Repeat, ask};
use roomcast_gateway::handshake::shard_of;
use roomcast_gateway::{ClientId, MOVED_LIFETIME, SavedClient};
use roomcast_proto::gateway_kind::GatewayKind;
use roomcast_proto::log_record::LogRecord;
use std::rc::Rc;
use worker::{Response, ResponseBuilder, State};

impl GatewayObject {
    /// Finds the record of a client that resumes here, and passes it to the core.
    pub(super) async fn find(self: &Rc<Self>, client: ClientId, find: FindRequest) -> Result<()> {
        let record = self.find_record(&find).await.unwrap_or_else(|error| {
            log_error(error);
            None
        });
        self.with_active(None, |active, _| {
            let (gateway, now) = (&mut active.gateway, active.began);
            gateway.found(client, &find.pid, record, now);
        })
    }

    async fn find_record(self: &Rc<Self>, find: &FindRequest) -> Result<Option<String>> {
        let Some(home) = shard_of(&find.pid) else {
            return Ok(None);
        };
        let home = GatewayKind::EngineIo.name(home);
        let saved = match self.find_at(&home, find).await? {
            Some(SavedClient::Moved(gateway)) => self.find_at(&gateway, find).await?,
            saved => saved,
        };
        Ok(match saved {
            Some(SavedClient::Record(record)) => Some(record),
            Some(SavedClient::Moved(_)) | None => None,
        })
    }

    /// Removes the value that a gateway has stored under the `pid`, and returns it. The
    /// gateway can be this one.
    async fn find_at(
        self: &Rc<Self>,
        name: &str,
        find: &FindRequest,
    ) -> Result<Option<SavedClient>> {
        let here = self.with_active(None, |active, state| {
            (active.name == name).then(|| active.take_saved(state, find))
        })?;
        if let Some(saved) = here {
            return Ok(saved);
        }
        let headers = [(headers::GATEWAY, name), (headers::FIND, "1")];
        let find = serde_json::to_string(find)?;
        let _slot = self.host.slots.take().await;
        // Not repeated: the first attempt may have removed the record.
        let (_, saved) = ask(
            &self.host.env,
            GATEWAYS,
            name,
            &headers,
            find,
            Repeat::Never,
        )
        .await?;
        Ok((!saved.is_empty()).then(|| SavedClient::parse(saved)))
    }

    /// Handles the request of another gateway. The record then belongs to that gateway.
    pub(super) fn handle_find(
        self: &Rc<Self>,
        name: String,
        find: &FindRequest,
    ) -> Result<Response> {
        let saved = self.with_active(Some(name), |active, state| active.take_saved(state, find))?;
        let answer = saved.map(|saved| saved.to_string()).unwrap_or_default();
        Ok(ResponseBuilder::new().fixed(answer.into_bytes()))
    }
}

impl ActiveGateway {
    /// Removes the value that is stored under a `pid`, and returns it. Closes the client's
    /// connection if it is open. If the client moves to another gateway, its home stores the
    /// name of that gateway.
    fn take_saved(&mut self, state: &State, find: &FindRequest) -> Option<SavedClient> {
        let gateway = &mut self.gateway;
        gateway.evict(&find.pid, &find.user);
        self.drain_events(state);
        let taken = self.store.take(&find.pid, &find.user);
        let moves = !find.by.is_empty() && find.by != self.name;
        let is_home =
            shard_of(&find.pid).is_some_and(|home| self.name == GatewayKind::EngineIo.name(home));
        match taken {
            Ok(Some(saved)) => {
                if moves && is_home {
                    let moved = SavedClient::Moved(find.by.clone()).to_string();
                    let gone = Some(self.began + MOVED_LIFETIME);
                    if let Err(error) = self.store.save(&find.pid, &find.user, gone, &moved) {
                        self.log(LogRecord::error(format!("storing failed: {error}")));
                    }
                }
                Some(SavedClient::parse(saved))
            }
            Ok(None) => None,
            Err(error) => {
                self.log(LogRecord::error(format!("reading failed: {error}")));
                None
            }
        }
    }
}
