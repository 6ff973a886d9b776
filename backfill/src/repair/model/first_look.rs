//! The first look at a part, as a Scan or an export gives it: the item is there first, then the row
//! is read, and only then the object is asked for. It writes nothing: it dismisses the part, or
//! makes a candidate of it.

use super::database::{Act, Database, FirstLook, Put, ReRead, Read, Row, Saw};
use super::object::Object;
use super::rules::{First, Heads, Ver};
use super::steps::{Around, Change};

/// What a first look does, where it is then, `None` if the part is dismissed, and what it upserts.
type Looked = (Read, Option<ReRead>, Option<Put>);

impl Around<'_> {
    /// A repair begins its first look.
    pub(super) fn first_looks(&self, database: &Database, changes: &mut Vec<Change>) {
        let first = self.rules.first;
        let after_streams = Some(database.delivered) >= database.repaired_at;
        let after_timeout = !database.old_lane_lives();
        let may_begin = match first {
            First::Never => false,
            First::BeforeStreams => after_timeout,
            First::BeforeTimeout => after_streams,
            First::AfterStreams | First::OfAnyAge | First::UpsertsImage => {
                after_streams && after_timeout
            }
        };
        if !may_begin {
            return;
        }
        let oldest = if first == First::OfAnyAge { 0 } else { database.lost };
        for at in oldest..=self.committed {
            let content = self.history[usize::from(at)];
            let look = ReRead::First(FirstLook::Item { content });
            let act = Act::Repair(Read::First(Saw::Item { content }));
            changes.push(self.change(
                act,
                Database { repair: Some(look), ..*database },
                None,
                false,
            ));
        }
    }

    /// The next step of a first look.
    pub(super) fn first_look(&self, at: FirstLook, database: &Database) -> Looked {
        let Database { row: Row { version, content, .. }, .. } = *database;
        let saw_row = Saw::Row { version, content };
        let item_now = self.history[usize::from(self.committed)];
        let went_on = |saw, next: FirstLook| (Read::First(saw), Some(ReRead::First(next)), None);
        match at {
            FirstLook::Item { content: 0 } if content == 0 => {
                self.dismiss(saw_row, version, Heads::OfUnheld)
            }
            FirstLook::Item { content: 0 } => went_on(saw_row, FirstLook::OnlyInRow),
            FirstLook::Item { content: item } if item == content => {
                self.dismiss(saw_row, version, Heads::OfItems)
            }
            FirstLook::Item { content: item } if self.rules.first == First::UpsertsImage => {
                let committed = self.committed;
                let next = ReRead::Held { row: version, image: item, floor: version, committed };
                (Read::First(saw_row), Some(next), None)
            }
            FirstLook::Item { .. } => candidate(saw_row),
            FirstLook::Equal { row } => {
                let ahead = |object: &Object| object.version.is_newer_than(row);
                match self.object.filter(ahead) {
                    Some(_) => candidate(Saw::Object),
                    None => (Read::First(Saw::Object), None, None),
                }
            }
            FirstLook::OnlyInRow if item_now == 0 => {
                went_on(Saw::ItemByKey { content: item_now }, FirstLook::Gone)
            }
            FirstLook::OnlyInRow => {
                self.dismiss(Saw::ItemByKey { content: item_now }, version, Heads::OfAll)
            }
            FirstLook::Gone => went_on(saw_row, FirstLook::RowAgain { version, content }),
            FirstLook::RowAgain { version, content } if content == item_now => {
                self.dismiss(Saw::ItemByKey { content: item_now }, version, Heads::OfAll)
            }
            FirstLook::RowAgain { .. } => candidate(Saw::ItemByKey { content: item_now }),
        }
    }

    /// Nothing is to be done about a part whose row had this version, unless its object is ahead of
    /// that: `by` says which rule asks for the object.
    fn dismiss(&self, saw: Saw, row: Ver, by: Heads) -> Looked {
        let asks = self.rules.heads >= by;
        let next = (self.rules.objects && asks).then_some(ReRead::First(FirstLook::Equal { row }));
        (Read::First(saw), next, None)
    }
}

/// The part is to be read anew, from its row on.
fn candidate(saw: Saw) -> Looked {
    (Read::First(saw), Some(ReRead::Candidate), None)
}
