//! PostgreSQL: which sessions a call reads again while no other call does.
//!
//! Two objects may name the same part. Two re-reads of one part must not overlap: the one that
//! finds it equal would count its record as settled, while the other still holds an older image
//! back. The search over all orders of events finds a wrong end then. So a call re-reads a session
//! only while it holds the session's advisory lock. Locks are shared by sessions, because the
//! server has room for some thousands. They belong to the session of the server that upserts, and
//! end with it.

use std::collections::HashSet;

use md5::{Digest as _, Md5};
use projector::bind;
use projector::error::Error;

use crate::advisory_lock::Held;
use crate::items::Key;

/// All calls together hold at most this many locks; sessions share them.
const LOCKS: u16 = 1024;

/// Those that are free. Nobody waits here: two calls could wait for each other.
const TAKE: &str = "SELECT wanted.number FROM unnest($2::int[]) AS wanted (number)
WHERE pg_try_advisory_lock($1, wanted.number)";

const GIVE_BACK: &str = "SELECT pg_advisory_unlock($1, held.number)
FROM unnest($2::int[]) AS held (number)";

/// The locks of the sessions of one repair.
pub(super) struct SessionLocks {
    /// The first of the two numbers of each lock: no other command takes locks of two numbers.
    repair: i32,
}

/// Locks that are held.
pub(super) struct Taken(Vec<i32>);

impl SessionLocks {
    pub(super) fn of(repair: i64) -> Self {
        Self { repair: number(&format!("failures {repair}")) }
    }

    /// Takes the locks of these parts' sessions that are free, and returns which parts it has now.
    ///
    /// # Errors
    /// If the repair has ended, or the connection is lost.
    pub(super) async fn take(
        &self,
        lock: &mut Held,
        keys: &mut Vec<Key>,
    ) -> Result<(Vec<Key>, Taken), Error> {
        let wanted: HashSet<i32> = keys.iter().map(lock_of).collect();
        let wanted: Vec<i32> = wanted.into_iter().collect();
        let taken: Vec<(i32,)> = lock.connection().fetch(TAKE, bind![self.repair, &wanted]).await?;
        let taken: HashSet<i32> = taken.into_iter().map(|(number,)| number).collect();
        let (ours, others) =
            std::mem::take(keys).into_iter().partition(|key| taken.contains(&lock_of(key)));
        *keys = others;
        Ok((ours, Taken(taken.into_iter().collect())))
    }

    /// Lets other calls have the sessions.
    ///
    /// # Errors
    /// As [`SessionLocks::take`].
    pub(super) async fn give_back(&self, lock: &mut Held, taken: Taken) -> Result<(), Error> {
        let arguments = bind![self.repair, &taken.0];
        lock.connection().fetch::<(bool,)>(GIVE_BACK, arguments).await.map(drop)
    }
}

/// The lock of a part: that of its session, because a call may look at its other parts too.
fn lock_of((_, session_id): &Key) -> i32 {
    number(session_id).rem_euclid(i32::from(LOCKS))
}

fn number(text: &str) -> i32 {
    let digest: [u8; 16] = Md5::digest(text).into();
    i32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

#[cfg(test)]
mod tests {
    use projector::part::Part;

    use super::{LOCKS, lock_of};

    #[test]
    fn the_parts_of_a_session_share_one_of_the_locks() {
        for number in 0..2_000 {
            let locks = Part::ALL.map(|part| lock_of(&(part, format!("s{number}"))));
            assert!((0..i32::from(LOCKS)).contains(&locks[0]), "{locks:?}");
            assert!(locks.iter().all(|lock| *lock == locks[0]), "{locks:?}");
        }
    }
}
