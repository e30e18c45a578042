//! Positions of readers that have no other durable place for them: a small file each.
//!
//! `position-<reader>`, 52 bytes: magic `SPANLPOS`, version u32, zero u32, journal id (16 bytes), next sequence u64,
//! zero u64, CRC32C u32 of everything before it.

use std::io;
use std::path::Path;

use super::disk::{OsDisk, read_file, replace_file};
use super::identity::{FORMAT_VERSION, JournalId};
use super::reader::Position;
use super::record::{u32_at, u64_at};
use crate::checksum;

const MAGIC: &[u8; 8] = b"SPANLPOS";
const LENGTH: usize = 52;

/// Name of the file. Reader names come from the configuration (`otlp/eu`), so what a file name cannot hold is
/// escaped.
fn file_name(reader: &str) -> String {
    let mut name = String::from("position-");
    for byte in reader.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    name
}

/// Saves a position; when this returns it survives a power failure.
pub fn save_position(directory: &Path, reader: &str, position: Position) -> io::Result<()> {
    let mut bytes = [0; LENGTH];
    bytes[0..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(&position.journal.0);
    bytes[32..40].copy_from_slice(&position.next.to_le_bytes());
    let crc = checksum::crc32c(&bytes[..48]);
    bytes[48..52].copy_from_slice(&crc.to_le_bytes());
    replace_file(&OsDisk::create(directory)?, &file_name(reader), &bytes)
}

/// The saved position; `None` when there is none. A damaged file is an error of kind `InvalidData`: whether to begin
/// at the oldest record is for the reader to decide.
pub fn load_position(directory: &Path, reader: &str) -> io::Result<Option<Position>> {
    let bytes = match OsDisk::read_only(directory).and_then(|disk| read_file(&disk, &file_name(reader), 4096)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let sound = bytes.len() == LENGTH
        && &bytes[0..8] == MAGIC
        && u32_at(&bytes, 8) == FORMAT_VERSION
        && checksum::crc32c(&bytes[..48]) == u32_at(&bytes, 48);
    if !sound {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the position of {reader} is damaged"),
        ));
    }
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[16..32]);
    Ok(Some(Position {
        journal: JournalId(id),
        next: u64_at(&bytes, 32),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_loaded_as_it_was_saved() {
        let directory = tempfile::tempdir().unwrap();
        let position = Position {
            journal: JournalId([3; 16]),
            next: 77,
        };
        assert_eq!(load_position(directory.path(), "otlp/eu").unwrap(), None);
        save_position(directory.path(), "otlp/eu", position).unwrap();
        assert_eq!(load_position(directory.path(), "otlp/eu").unwrap(), Some(position));
        assert_eq!(load_position(directory.path(), "otlp/us").unwrap(), None);
    }

    #[test]
    fn names_of_readers_cannot_leave_the_directory_or_collide() {
        assert_eq!(file_name("otlp/eu"), "position-otlp%2feu");
        assert_eq!(file_name("../x"), "position-%2e%2e%2fx");
        assert_ne!(file_name("a/b"), file_name("a%2fb"));
    }

    #[test]
    fn a_damaged_position_is_an_error_and_not_another_position() {
        let directory = tempfile::tempdir().unwrap();
        save_position(
            directory.path(),
            "forward",
            Position {
                journal: JournalId([3; 16]),
                next: 77,
            },
        )
        .unwrap();
        let path = directory.path().join("position-forward");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[33] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(
            load_position(directory.path(), "forward").unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
