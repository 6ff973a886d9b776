//! Merges one session record and its left and right foot-scan records, arriving in any order over
//! two DynamoDB streams, into one PostgreSQL row and one S3 object.
//!
//! The pure core: [`change`] decodes a record and [`image`] the item in it, [`fold`](mod@fold)
//! merges a batch, [`version`] orders, [`object`] writes the JSON, all by the one list of columns
//! in [`measurement`]. Around it: [`read_model`] and [`rejected`] write PostgreSQL over
//! [`database`], [`archive`] writes S3, and [`apply`] is the one path through all of them.
//! `ARCHITECTURE.md` has the map and the guarantees.
//!
//! The folders say what is pure (`record`, `model`) and what touches the world (`store`); a module
//! is named without its folder.

pub mod apply;
pub mod cause;
pub mod config;
pub mod counts;
pub mod deadline;
pub mod error;
pub mod handler;
mod model;
mod record;
pub mod start;
mod store;
pub mod telemetry;

pub use self::model::{measurement, object, part, version};
pub use self::record::{attribute, change, fold, image, item, kept, stored};
pub use self::store::{archive, database, pending_objects, read_model, rejected};
