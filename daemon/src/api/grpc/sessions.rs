//! The service `nestd.v1.Sessions`: decode, call the service, encode.

use nestd_proto::v1;
use tonic::{Request, Response, Status};

use super::connection::Peer;
use super::convert;
use super::services::{Api, Streaming, client, events, peer, refuse};
use crate::types::SessionInfo;

#[tonic::async_trait]
impl v1::sessions_server::Sessions for Api {
    async fn create(
        &self,
        request: Request<v1::CreateSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let peer = peer(&request);
        let v1::CreateSessionRequest { messages, options } = request.into_inner();
        let messages = convert::messages(messages).map_err(refuse)?;
        let options = convert::session_options(options);
        let made = self.core.service.create_session(&peer.client(), messages, options).await;
        Ok(self.made(&peer, made.map_err(refuse)?))
    }

    async fn list(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        let sessions = self.core.service.sessions().list(&client(&request));
        let sessions = sessions.into_iter().map(convert::session).collect();
        Ok(Response::new(v1::ListSessionsResponse { sessions }))
    }

    async fn get_transcript(
        &self,
        request: Request<v1::GetTranscriptRequest>,
    ) -> Result<Response<v1::Transcript>, Status> {
        let client = client(&request);
        let session = request.into_inner().session;
        let said = self.core.service.sessions().transcript(&client, &session).map_err(refuse)?;
        Ok(Response::new(v1::Transcript { messages: convert::transcript(said) }))
    }

    async fn append(
        &self,
        request: Request<v1::AppendRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let client = client(&request);
        let v1::AppendRequest { session, messages } = request.into_inner();
        let messages = convert::messages(messages).map_err(refuse)?;
        let info = self.core.service.append_to_session(&client, &session, messages).await;
        Ok(Response::new(convert::session(info.map_err(refuse)?)))
    }

    async fn fork(
        &self,
        request: Request<v1::ForkSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let peer = peer(&request);
        let v1::ForkSessionRequest { session, options } = request.into_inner();
        let options = convert::session_options(options);
        let made = self.core.service.fork_session(&peer.client(), &session, options).await;
        Ok(self.made(&peer, made.map_err(refuse)?))
    }

    type PrewarmStream = Streaming<v1::GenerateEvent>;

    async fn prewarm(
        &self,
        request: Request<v1::PrewarmRequest>,
    ) -> Result<Response<Self::PrewarmStream>, Status> {
        let client = client(&request);
        let v1::PrewarmRequest { session, priority } = request.into_inner();
        let priority = convert::priority(priority).map_err(refuse)?;
        let begun = self.core.service.prewarm_session(&client, &session, priority).await;
        Ok(Response::new(events(begun.map_err(refuse)?)))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteSessionRequest>,
    ) -> Result<Response<v1::DeleteSessionResponse>, Status> {
        let client = client(&request);
        let session = request.into_inner().session;
        self.core.service.sessions().delete(&client, &session).await.map_err(refuse)?;
        Ok(Response::new(v1::DeleteSessionResponse {}))
    }
}

impl Api {
    /// A session that was just made.
    fn made(&self, peer: &Peer, session: SessionInfo) -> Response<v1::Session> {
        if peer.is_gone() {
            // It closed its connection before its session was there to end.
            self.core.service.sessions().left(&peer.client().name);
        }
        Response::new(convert::session(session))
    }
}
