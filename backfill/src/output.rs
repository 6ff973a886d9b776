//! The result of a command: text for people or, with `--json`, one object on standard output,
//! whatever happens. Then everything for people goes to standard error.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value as Json, json};

use crate::{console, outcome};

/// Where the result of a command goes.
pub(crate) struct Output {
    json: bool,
    kept: Mutex<Kept>,
}

/// What the object will say.
#[derive(Default)]
struct Kept {
    members: Map<String, Json>,
    error: Option<String>,
}

impl Output {
    /// `json`: one object at the end; otherwise text.
    pub(crate) fn new(json: bool) -> Self {
        Self { json, kept: Mutex::default() }
    }

    /// A line about what was done; the object says it, too.
    pub(crate) fn line(&self, text: &str) {
        if self.json {
            console::line(text);
        } else {
            console::say(text);
        }
    }

    /// The whole result, in the form that was asked for. `json` makes an object.
    pub(crate) fn result(
        &self,
        text: impl FnOnce() -> String,
        json: impl FnOnce() -> serde_json::Result<Json>,
    ) -> serde_json::Result<()> {
        if !self.json {
            console::say(text().trim_end());
        }
        self.json(json)
    }

    /// A state that somebody watches, as text; with `--json` nothing but the last one is printed.
    pub(crate) fn board(&self, text: impl FnOnce() -> String, changed: bool) {
        if !self.json {
            console::board(text().trim_end(), changed);
        }
    }

    /// The result of a command whose lines have said it all.
    pub(crate) fn json(
        &self,
        json: impl FnOnce() -> serde_json::Result<Json>,
    ) -> serde_json::Result<()> {
        if !self.json {
            return Ok(());
        }
        if let Json::Object(members) = json()? {
            self.kept().members = members;
        }
        Ok(())
    }

    /// Why a command that did not fail has not done all that it was asked for, for people and for
    /// the object.
    pub(crate) fn ended_early(&self, why: &str) {
        console::line(why);
        self.explain(why);
    }

    /// The same for the object alone: the text says it already.
    pub(crate) fn explain(&self, why: &str) {
        self.kept().error = Some(why.to_owned());
    }

    /// The end: with `--json`, prints the object, which always has `error` and `exit_code`.
    pub(crate) fn end(&self, exit_code: u8, failure: Option<&anyhow::Error>) {
        if self.json {
            let failure = failure.map(outcome::failure_as_text);
            console::print(&format!("{:#}", self.object(exit_code, failure)));
        }
    }

    fn object(&self, exit_code: u8, failure: Option<String>) -> Json {
        let mut kept = self.kept();
        let error = failure.or_else(|| kept.error.take());
        let mut members = std::mem::take(&mut kept.members);
        members.insert("error".to_owned(), json!(error));
        members.insert("exit_code".to_owned(), json!(exit_code));
        Json::Object(members)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::Output;
    use serde_json::json;

    #[test]
    fn every_object_has_an_error_and_an_exit_code() {
        let output = Output::new(true);
        let failed = output.object(1, Some("S3 is away".to_owned()));
        assert_eq!(failed, json!({ "error": "S3 is away", "exit_code": 1 }));
        assert_eq!(output.object(0, None), json!({ "error": null, "exit_code": 0 }));
    }

    #[test]
    fn what_is_known_is_told_beside_the_error() {
        let output = Output::new(true);
        let told = output.result(String::new, || Ok(json!({ "written": 3 })));
        told.expect("an object");
        output.explain("stopped by a signal");
        let expected = json!({ "written": 3, "error": "stopped by a signal", "exit_code": 6 });
        assert_eq!(output.object(6, None), expected);
    }
}
