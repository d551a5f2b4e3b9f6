//! `GET /ws`: a native WebSocket for many rooms, which the object of a gateway accepts.

use super::entry::Handler;
use super::problem::Problem;
use super::response::HandlerResult;
use roomcast_gateway::{ConnectInfo, Protocol};
use roomcast_proto::gateway_kind::GatewayKind;

impl Handler<'_> {
    /// `GET /ws`.
    pub(super) async fn connect_native(&self) -> HandlerResult {
        if !self.is_upgrade() {
            return Err(Problem::upgrade_required());
        }
        self.check_origin("")?;
        let connect_info = ConnectInfo {
            protocol: Protocol::Native,
            identity: Some(self.authenticate_socket("").await?),
            error: None,
            address: self.header("cf-connecting-ip"),
            recovers: false,
            may_recover: false,
        };
        let gateway = GatewayKind::Native.name(self.random_shard()?);
        let response = self
            .connect_to_gateway(&gateway, connect_info, None, None)
            .await?;
        self.upgrade_response(response).await
    }
}
