//! Whether two sides are equal: what a difference is, and how it is reported and kept. One file per
//! comparison.

pub(crate) mod difference;
pub(crate) mod objects;
pub(crate) mod report;
pub(crate) mod rows;
pub(crate) mod tables;
pub(crate) mod verification;

use std::time::Duration;

use time::OffsetDateTime;

pub(crate) use crate::compare_objects::End;
use crate::rate::Rate;
use crate::stop::Stop;
use crate::verify::report::Report;

/// What every comparison has.
pub(crate) struct Run<'a> {
    pub(crate) stop: &'a Stop,
    /// The differences that persist.
    pub(crate) report: Report,
    /// How many sessions are compared per second.
    pub(crate) rate: Rate,
    /// How long to wait before what differs is read again.
    pub(crate) wait: Duration,
    /// How often it is read again.
    pub(crate) rounds: u16,
    /// What the other side said at this time was compared; `None` if it is what it says now.
    pub(crate) as_of: Option<OffsetDateTime>,
    /// Every session up to this one is compared, and its differences are in the report.
    pub(crate) compared_through: String,
}
