//! The channel below the generated clients. tonic panics on a status whose details are no base64, and those come
//! from the other side: they are taken out of an answer before tonic reads it, and the status stays.

use http_body_util::BodyExt as _;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Response};
use tonic::metadata::MetadataMap;
use tonic::transport;
use tower::util::MapResponse;

const DETAILS: &str = "grpc-status-details-bin";

/// What the generated clients call.
pub(super) type Channel = MapResponse<transport::Channel, fn(Response<Body>) -> Response<Body>>;

pub(super) fn checked(channel: transport::Channel) -> Channel {
    MapResponse::new(channel, check)
}

/// A status is in the headers, or in the trailers.
fn check(response: Response<Body>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    check_details(&mut head.headers);
    let body = body.map_frame(|mut frame| {
        if let Some(trailers) = frame.trailers_mut() {
            check_details(trailers);
        }
        frame
    });
    Response::from_parts(head, Body::new(body))
}

pub(crate) fn check_details(headers: &mut HeaderMap) {
    let Some(details) = headers.get(DETAILS) else { return };
    let mut only = HeaderMap::new();
    only.insert(DETAILS, details.clone());
    let only = MetadataMap::from_headers(only);
    if only.get_bin(DETAILS).is_none_or(|details| details.to_bytes().is_err()) {
        headers.remove(DETAILS);
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;
    use tonic::Status;
    use tonic::codegen::Bytes;

    use super::*;

    fn headers(details: &str) -> HeaderMap {
        let pairs = [("grpc-status", "8"), ("grpc-message", "full"), (DETAILS, details)];
        pairs
            .into_iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    /// Found by a seed of the fuzz target: tonic panics on these.
    #[tokio::test]
    async fn details_that_are_no_base64_are_left_out() {
        for (details, kept) in [("AAAA", 3), ("A", 0), ("AAAAAB", 0), ("?", 0), ("", 0)] {
            let trailers = headers(details);
            let body = Empty::<Bytes>::new().with_trailers(async { Some(Ok(trailers)) });
            let mut response = Response::new(Body::new(body));
            *response.headers_mut() = headers(details);
            let (head, body) = check(response).into_parts();
            let trailers = body.collect().await.unwrap().trailers().cloned().unwrap();
            for headers in [head.headers, trailers] {
                let status = Status::from_header_map(&headers).unwrap();
                assert_eq!((status.message(), status.details().len()), ("full", kept), "{details}");
            }
        }
    }
}
