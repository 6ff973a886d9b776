//! The ARNs of state machines, executions, map runs and exports. Pure.

use projector::config::ConfigError;

/// The variable that names the state machine.
pub(crate) const VARIABLE: &str = "RECONCILE_STATE_MACHINE";

/// The fields of an ARN of Step Functions: `arn:PARTITION:states:REGION:ACCOUNT:KIND:NAME...`.
fn fields<'a>(arn: &'a str, kind: &str) -> Option<Vec<&'a str>> {
    let fields: Vec<&str> = arn.split(':').collect();
    let fits = fields.len() >= 7
        && fields[0] == "arn"
        && fields[2] == "states"
        && fields[5] == kind
        && [1, 3, 4, 6].iter().all(|index| !fields[*index].is_empty());
    fits.then_some(fields)
}

/// A state machine, by its ARN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine(String);

impl Machine {
    /// Reads the value of `--state-machine`.
    ///
    /// # Errors
    /// [`ConfigError`] if none is given, or it is no ARN of a state machine.
    pub(crate) fn read(arn: Option<&str>) -> Result<Self, ConfigError> {
        let wrong = |problem: String| ConfigError { variable: VARIABLE, problem };
        let Some(arn) = arn else {
            return Err(wrong(
                "is not set, and neither is --state-machine: give the output StateMachine of \
                 infra/reconcile.yaml"
                    .to_owned(),
            ));
        };
        if fields(arn, "stateMachine").is_none_or(|fields| fields.len() > 7) {
            return Err(wrong(format!(
                "is {arn:?}, and no ARN of a state machine \
                 (arn:aws:states:REGION:ACCOUNT:stateMachine:NAME)"
            )));
        }
        Ok(Self(arn.to_owned()))
    }

    /// Its ARN.
    pub(crate) fn arn(&self) -> &str {
        &self.0
    }

    /// The ARN of its execution with this name.
    pub(crate) fn execution(&self, name: &str) -> String {
        format!("{}:{name}", self.0.replacen(":stateMachine:", ":execution:", 1))
    }
}

/// Whether a text is the ARN of an execution.
pub(crate) fn is_execution(text: &str) -> bool {
    fields(text, "execution").is_some_and(|fields| fields.len() >= 8)
}

/// The region of an ARN.
pub(crate) fn region(arn: &str) -> Option<&str> {
    arn.split(':').nth(3).filter(|region| !region.is_empty())
}

/// The label of a map run: `arn:...:mapRun:STATE-MACHINE/LABEL:ID`.
pub(crate) fn label(map_run: &str) -> &str {
    let path = map_run.split(':').nth(6).unwrap_or_default();
    path.split_once('/').map_or(path, |(_, label)| label)
}

/// Sees that both exports are exports of these tables, in this order.
///
/// # Errors
/// [`ConfigError`] that names the one that is not.
pub(crate) fn check_exports(
    exports: [&str; 2],
    [sessions, scans]: [&str; 2],
) -> Result<(), ConfigError> {
    for (export, table) in exports.into_iter().zip([sessions, scans]) {
        let resource = export.strip_prefix("arn:").and_then(|arn| arn.splitn(5, ':').nth(4));
        let parts: Vec<&str> = resource.unwrap_or_default().split('/').collect();
        let expected = "(arn:aws:dynamodb:REGION:ACCOUNT:table/TABLE/export/ID)";
        let problem = match parts[..] {
            ["table", name, "export", id] if !id.is_empty() && name == table => continue,
            ["table", name, "export", id] if !id.is_empty() => format!(
                "is {export:?}, an export of table {name:?} where one of {table:?} is expected: \
                 give first that of the sessions, then that of the scans, and check \
                 SESSIONS_TABLE and SCANS_TABLE"
            ),
            _ => format!("is {export:?}, and no ARN of an export {expected}"),
        };
        return Err(ConfigError { variable: "--export", problem });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Machine, check_exports, is_execution, label, region};

    const MACHINE: &str = "arn:aws:states:eu-central-1:123456789012:stateMachine:reconcile";

    #[test]
    fn an_execution_is_named_by_its_machine() {
        let machine = Machine::read(Some(MACHINE)).expect("an ARN");
        let execution = machine.execution("nightly");
        assert_eq!(
            execution,
            "arn:aws:states:eu-central-1:123456789012:execution:reconcile:nightly"
        );
        assert!(is_execution(&execution) && !is_execution(MACHINE) && !is_execution("nightly"));
        assert_eq!(region(&execution), Some("eu-central-1"));
    }

    #[test]
    fn what_is_no_machine_is_refused_with_the_place_to_find_one() {
        for (wrong, said) in [
            (None, "the output StateMachine of infra/reconcile.yaml"),
            (Some("reconcile"), "no ARN of a state machine"),
            (Some("arn:aws:states:eu-central-1:123456789012:execution:reconcile:one"), "no ARN"),
            (Some("arn:aws:lambda:eu-central-1:123456789012:function:reconcile"), "no ARN"),
        ] {
            let error = Machine::read(wrong).expect_err("no state machine").to_string();
            assert!(error.starts_with("RECONCILE_STATE_MACHINE is "), "{error}");
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_map_run_is_called_by_its_label() {
        let arn = "arn:aws:states:us-east-1:123456789012:mapRun:reconcile/Files:6f1c-22";
        assert_eq!(label(arn), "Files");
        assert_eq!(label("nonsense"), "");
    }

    #[test]
    fn exports_in_the_wrong_order_or_of_other_tables_are_refused() {
        let export = |table: &str| {
            format!("arn:aws:dynamodb:us-east-1:123456789012:table/{table}/export/01-a")
        };
        let (sessions, scans) = (export("sessions"), export("scans"));
        let check = |first: &str, second: &str| {
            check_exports([first, second], ["sessions", "scans"]).map_err(|error| error.to_string())
        };
        check(&sessions, &scans).expect("both are right");
        let swapped = check(&scans, &sessions).expect_err("swapped");
        assert!(swapped.contains("of table \"scans\" where one of \"sessions\""), "{swapped}");
        let half = check(&sessions, "01-a").expect_err("no ARN");
        assert!(half.contains("--export is \"01-a\", and no ARN of an export"), "{half}");
    }
}
