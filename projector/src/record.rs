//! Records of a stream: what one says, what a batch of them comes to, and how a rejected one is
//! kept. Pure.

pub mod attribute;
pub mod change;
pub mod fold;
pub mod image;
pub mod item;
pub mod kept;
pub mod stored;
