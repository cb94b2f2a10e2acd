//! What hickory's server calls for each query.

use std::sync::Arc;

use async_trait::async_trait;
use hickory_server::{
    net::runtime::Time,
    proto::op::{Header, HeaderCounts, Metadata},
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
};

use super::DnsServer;
use crate::{reply, zone::Door};

/// Answers the queries that come in by one door.
pub(super) struct Handler {
    pub(super) server: Arc<DnsServer>,
    pub(super) door: Door,
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut client: R,
    ) -> ResponseInfo {
        let unsent = |metadata: Metadata| {
            let counts = HeaderCounts::default();
            ResponseInfo::from(Header { metadata, counts })
        };
        let Some(reply) = self.server.reply(&self.door, request).await else {
            tracing::debug!(client = %request.src(), "a query from outside");
            return unsent(request.metadata);
        };
        let metadata = reply.metadata;
        let reply = match reply.fitted(request) {
            Ok(reply) => reply,
            Err(error) => {
                tracing::debug!(client = %request.src(), %error, "a query that cannot be answered");
                return unsent(metadata);
            }
        };
        let edns = reply::opt(request);
        let sent = client.send_response(reply.response(request, edns.as_ref()));
        sent.await.unwrap_or_else(|error| {
            tracing::debug!(client = %request.src(), %error, "a reply could not be sent");
            unsent(metadata)
        })
    }
}
