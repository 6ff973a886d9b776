//! Everything that reads bytes from outside, as functions of bytes: for `make fuzz`, and for the
//! test that replays the corpus (`tests/corpus/`).
//!
//! The code under test is the programs' own, file by file, without their clients of AWS and of
//! PostgreSQL: so that it builds in seconds with a fuzzer's instrumentation, and so that the
//! private modules of `backfill` are within reach. [`targets`] has the functions.

// The modules have their tests in their own crates; `--all-targets` asks for them here, too.
#![cfg(not(test))]
#![expect(dead_code, reason = "the programs use more of these modules than the targets do")]
#![expect(unreachable_pub, reason = "the modules are public in the crate that they are of")]

// The modules of `backfill` name the library.
extern crate self as projector;

pub mod targets;

#[path = "../../../projector/src/record/attribute.rs"]
pub(crate) mod attribute;
#[path = "../../../projector/src/record/change.rs"]
pub(crate) mod change;
#[path = "../../../projector/src/record/fold.rs"]
pub(crate) mod fold;
#[path = "../../../projector/src/record/image.rs"]
pub(crate) mod image;
#[path = "../../../projector/src/record/item.rs"]
pub(crate) mod item;
#[path = "../../../projector/src/record/kept.rs"]
pub(crate) mod kept;
#[path = "../../../projector/src/model/measurement.rs"]
pub(crate) mod measurement;
#[path = "../../../projector/src/model/object.rs"]
pub(crate) mod object;
#[path = "../../../projector/src/model/part.rs"]
pub(crate) mod part;
#[path = "../../../projector/src/record/stored.rs"]
pub(crate) mod stored;
#[path = "../../../projector/src/model/version.rs"]
pub(crate) mod version;

#[path = "../../../backfill/src/documents"]
pub(crate) mod documents {
    pub(crate) mod document;
    pub(crate) mod dump;
    pub(crate) mod outline;
    pub(crate) mod scan;
    pub(crate) mod values;
}

#[path = "../../../backfill/src/items/manifest.rs"]
pub(crate) mod manifest;
