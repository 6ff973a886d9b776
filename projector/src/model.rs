//! The read model: its parts, its columns, the order of its versions, and the object of a row.
//! Pure.

pub mod measurement;
pub mod object;
pub mod part;
pub mod version;
