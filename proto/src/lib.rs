//! The CRIU image format, version 1.1, and the messages of its RPC.
//!
//! - [`pb`]: one Rust type per message of `schema/`.
//! - [`wire`]: decoding that also enforces proto2 `required`, which prost does not.
//! - [`images`]: which files a folder may hold, how they are named and framed.
//! - [`dir`]: a folder of images as one handle; [`reader`] and [`writer`] its files.
//! - [`archive`]: a folder as one stream; [`key`]: encryption of images.
//! - [`show`]: any image as JSON, for people.
//! - [`stats`]: the two files of numbers beside the images.
//!
//! Images are untrusted input: no bytes in them make this crate panic, leave the folder, or allocate more than a small
//! multiple of what the file really holds.

pub mod archive;
pub mod dir;
pub mod error;
pub mod images;
pub mod key;
pub mod reader;
pub mod show;
pub mod stats;
pub mod wire;
pub mod writer;

pub use dir::ImageDir;
pub use error::{ImageError, Problem};
pub use images::{ImageType, Kind};
pub use reader::{ImageReader, Record};
pub use writer::ImageWriter;

/// For the traits that the messages implement (`prost::Message::encode_to_vec`), in the right version.
pub use prost;

/// The messages and enums of `schema/*.proto`, generated. Names are those of the schema in Rust's case
/// (`core_entry` is [`pb::CoreEntry`], the enum inside it is [`pb::core_entry::March`]).
#[allow(missing_docs, clippy::all)]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/pb.rs"));
}
