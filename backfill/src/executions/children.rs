//! What the child executions of a map run say: what each was asked, what it answered, and why it
//! failed. Pure. The forms are those of the function's answers (docs/reference.md,
//! "Reconciliation"); what is not understood counts as nothing.

use serde_json::Value as Json;

use super::{Counted, FailedChild};

impl Counted {
    /// Adds the output of a child.
    pub(crate) fn add(&mut self, output: &str) {
        self.children += 1;
        let Ok(output) = serde_json::from_str::<Json>(output) else { return };
        let of = |name: &str| output[name].as_u64().unwrap_or(0);
        // A file has `compared`, a range `rows`, an object of failures `records`.
        self.items += of("compared") + of("rows") + of("records");
        self.differing += of("differing");
        self.repaired += of("repaired");
        self.gone += of("gone");
        self.rejected += of("rejected");
    }
}

/// A child that failed: what its input names, and why.
pub(crate) fn failed(
    arn: &str,
    input: &str,
    error: Option<&str>,
    cause: Option<&str>,
) -> FailedChild {
    FailedChild {
        what: what(input).unwrap_or_else(|| arn.to_owned()),
        error: error.unwrap_or("no error").to_owned(),
        cause: message(cause.unwrap_or_default()),
    }
}

fn what(input: &str) -> Option<String> {
    let input: Json = serde_json::from_str(input).ok()?;
    let text = |name: &str| input[name].as_str();
    let bucket = text("bucket").unwrap_or_default();
    if let Some(key) = text("key") {
        return Some(format!("file s3://{bucket}/{key}"));
    }
    if let Some(key) = text("failure") {
        return Some(format!("object s3://{bucket}/{key}"));
    }
    let (after, step) = (text("after")?, text("step").unwrap_or("range"));
    let through = text("through").map_or("the last one".to_owned(), |id| format!("{id:?}"));
    Some(match after {
        "" => format!("{step} of the rows from the first one through {through}"),
        after => format!("{step} of the rows after {after:?} through {through}"),
    })
}

/// Lambda gives an error as JSON, with the message in it.
pub(crate) fn message(cause: &str) -> String {
    let parsed = serde_json::from_str::<Json>(cause).ok();
    let message = parsed.as_ref().and_then(|cause| cause["errorMessage"].as_str());
    message.unwrap_or(cause).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::{failed, message};
    use crate::executions::Counted;

    #[test]
    fn answers_of_every_kind_add_up() {
        let mut counted = Counted::default();
        for output in [
            r#"{"key": "a", "done": true, "compared": 10, "differing": 3, "repaired": 2, "rejected": 1}"#,
            r#"{"step": "check", "rows": 7, "asked": 4, "gone": 2, "removed": 2, "rejected": 0}"#,
            r#"{"failure": "k", "records": 5, "reread": 5, "repaired": 4, "rejected": 1}"#,
            "no JSON",
        ] {
            counted.add(output);
        }
        let expected =
            Counted { children: 4, items: 22, differing: 3, repaired: 6, gone: 2, rejected: 2 };
        assert_eq!(counted, expected);
    }

    #[test]
    fn a_child_that_failed_is_called_by_what_it_was_asked() {
        let lambda = r#"{"errorMessage": "the MD5 is another", "errorType": "DamagedFile"}"#;
        for (input, what) in [
            (r#"{"bucket": "b", "key": "data/a.json.gz"}"#, "file s3://b/data/a.json.gz"),
            (r#"{"bucket": "b", "failure": "aws/lambda/1"}"#, "object s3://b/aws/lambda/1"),
            (
                r#"{"step": "check", "after": "", "through": "m"}"#,
                "check of the rows from the first one through \"m\"",
            ),
            (
                r#"{"step": "count", "after": "m", "through": null}"#,
                "count of the rows after \"m\" through the last one",
            ),
            ("[]", "arn:child"),
        ] {
            let child = failed("arn:child", input, Some("DamagedFile"), Some(lambda));
            assert_eq!(child.what, what);
            assert_eq!(child.cause, "the MD5 is another");
        }
        assert_eq!(message("plain text"), "plain text");
    }
}
