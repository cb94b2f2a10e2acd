//! What hickory's server calls for each query.

use std::sync::Arc;

use async_trait::async_trait;
use hickory_server::{
    net::runtime::Time,
    proto::op::{Header, HeaderCounts},
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
};
use portolan_model::NetworkName;

use super::DnsServer;
use crate::reply;

/// Answers the queries that come to the address of one network.
pub(super) struct Handler {
    pub(super) server: Arc<DnsServer>,
    pub(super) network: NetworkName,
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut client: R,
    ) -> ResponseInfo {
        let reply = self.server.reply(&self.network, request).await;
        let unsent = ResponseInfo::from(Header {
            metadata: reply.metadata,
            counts: HeaderCounts::default(),
        });
        let reply = match reply.fitted(request) {
            Ok(reply) => reply,
            Err(error) => {
                tracing::debug!(client = %request.src(), %error, "a query that cannot be answered");
                return unsent;
            }
        };
        let edns = reply::opt(request);
        let sent = client.send_response(reply.response(request, edns.as_ref()));
        sent.await.unwrap_or_else(|error| {
            tracing::debug!(client = %request.src(), %error, "a reply could not be sent");
            unsent
        })
    }
}
