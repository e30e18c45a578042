//! The wall clock. Rooms without one are told the time by who calls them.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix time in nanoseconds; 0 while the clock says that it is before 1970.
pub fn unix_nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
