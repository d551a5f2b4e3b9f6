//! The results of publications, from a room to the service.

use roomcast_proto::answer::{ErrorData, to_json};
use roomcast_proto::error::{Error, Result};
use roomcast_proto::http::Refused;
use roomcast_proto::reader;
use roomcast_room::service::PublishResult;

/// Reads the answer of a room to a [`Publish`](roomcast_room::service::Request::Publish) request.
/// Returns the result of each publication: the receipt as JSON, or the error.
///
/// # Errors
///
/// Fails if the answer is not a list of [`PublishResult`]. This can happen during a deploy, if
/// the room runs another version.
pub fn read_results(json: &str) -> serde_json::Result<Vec<Result<String>>> {
    let results: Vec<PublishResult> = reader::from_str(json)?;
    Ok(results
        .into_iter()
        .map(|result| match result {
            PublishResult::Accepted(receipt) => Ok(receipt.get().to_owned()),
            PublishResult::Refused(error) => Err(error),
        })
        .collect())
}

/// Returns the body of the response to several messages: `{ results }`, in their order.
pub fn results_json(results: &[Result<String>]) -> String {
    let mut json = String::from(r#"{"results":["#);
    for (index, result) in results.iter().enumerate() {
        if index > 0 {
            json.push(',');
        }
        match result {
            Ok(receipt) => json.push_str(receipt),
            Err(error) => json.push_str(&refused_json(error)),
        }
    }
    json.push_str("]}");
    json
}

fn refused_json(error: &Error) -> String {
    to_json(&Refused {
        error: ErrorData::from(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_a_room_keep_the_bytes_of_receipts() {
        let json = r#"[{"accepted":{"seq":1, "messageId":"é"}},{"refused":{"code":"rateLimited","message":"m","field":null,"retry_after":5}}]"#;
        let results = read_results(json).expect("valid");
        assert_eq!(results[0], Ok(r#"{"seq":1, "messageId":"é"}"#.to_owned()));
        assert_eq!(
            results_json(&results),
            r#"{"results":[{"seq":1, "messageId":"é"},{"error":{"code":"rateLimited","message":"m","retryAfterMs":5}}]}"#
        );
        assert_eq!(results_json(&[]), r#"{"results":[]}"#);
    }

    #[test]
    fn an_answer_of_another_form_is_an_error() {
        for other in [
            "",
            "{}",
            "[1]",
            r#"[{"messageId":"m","seq":1}]"#,
            r#"[{"error":{"code":"conflict","message":"m"}}]"#,
            r#"[{"accepted":{}},{"other":1}]"#,
            r#"[{"refused":{"code":"unknown","message":"m"}}]"#,
        ] {
            assert!(read_results(other).is_err(), "{other}");
        }
    }
}
