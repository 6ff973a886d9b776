//! What an execution does, by the names of the states of infra/reconcile.yaml. Pure. A state of
//! another name is shown by that name, so that a template that was changed is still understood.

/// A part of a reconciliation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Exporting,
    Beginning,
    Comparing,
    Draining,
    Splitting,
    Counting,
    Checking,
    Ending,
    /// It runs beside the others, to the end.
    Following,
}

impl Phase {
    /// The phase that the name of a state, or of its map run, stands for.
    pub(crate) fn of(state: &str) -> Option<Self> {
        let state = state.to_lowercase();
        let words = [
            ("follow", Self::Following),
            // The question after each call of it.
            ("hasended", Self::Following),
            ("tell", Self::Ending),
            ("fail", if state.contains("failure") { Self::Draining } else { Self::Ending }),
            ("export", Self::Exporting),
            ("count", Self::Counting),
            ("split", Self::Splitting),
            ("checkr", Self::Checking),
            ("range", Self::Splitting),
            ("check", Self::Beginning),
            ("begin", Self::Beginning),
            ("end", Self::Ending),
            ("slice", Self::Comparing),
            ("file", Self::Comparing),
            ("compare", Self::Comparing),
        ];
        words.into_iter().find(|(word, _)| state.contains(word)).map(|(_, phase)| phase)
    }

    /// In words.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Exporting => "exporting",
            Self::Beginning => "beginning",
            Self::Comparing => "comparing files",
            Self::Draining => "draining failures",
            Self::Splitting => "splitting the rows",
            Self::Counting => "counting rows",
            Self::Checking => "checking rows",
            Self::Ending => "ending",
            Self::Following => "following the streams",
        }
    }

    /// What its children are, and what they count.
    pub(crate) fn units(self) -> (&'static str, &'static str) {
        match self {
            Self::Draining => ("objects", "records"),
            Self::Counting | Self::Checking | Self::Splitting => ("ranges", "rows"),
            _ => ("files", "items"),
        }
    }
}

/// Of the names of the states that were entered, the last one first, the one that says what the
/// execution does.
pub(crate) fn latest<'a>(entered: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut first = None;
    for state in entered {
        match Phase::of(state) {
            // The streams are followed all the time.
            Some(Phase::Following) => {}
            Some(_) => return Some(state),
            None => first = first.or(Some(state)),
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::{Phase, latest};

    #[test]
    fn a_state_stands_for_what_its_name_says() {
        for (state, phase) in [
            ("Check", Phase::Beginning),
            ("ExportSessions", Phase::Exporting),
            ("DescribeScansExport", Phase::Exporting),
            ("WaitForSessionsExport", Phase::Exporting),
            ("Begin", Phase::Beginning),
            ("CompareSessions", Phase::Comparing),
            ("CompareScans", Phase::Comparing),
            ("ListFailures", Phase::Draining),
            ("DrainFailures", Phase::Draining),
            ("SplitIntoRanges", Phase::Splitting),
            ("CountRows", Phase::Counting),
            ("CheckRows", Phase::Checking),
            ("Follow", Phase::Following),
            ("HasEnded", Phase::Following),
            ("End", Phase::Ending),
            ("TellSuccess", Phase::Ending),
        ] {
            assert_eq!(Phase::of(state), Some(phase), "{state}");
        }
        assert_eq!(Phase::of("Reconcile"), None);
    }

    /// The branch that follows the streams enters a state each quarter of an hour.
    #[test]
    fn the_branch_that_follows_and_helpers_hide_no_phase() {
        let entered = ["HasEnded", "Follow", "What", "CountRows", "Files"];
        assert_eq!(latest(entered.into_iter()), Some("CountRows"));
        assert_eq!(latest(["Follow", "Choose"].into_iter()), Some("Choose"));
        assert_eq!(latest(["Follow"].into_iter()), None);
    }
}
