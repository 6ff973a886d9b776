//! What a repair reads, and what AWS charges for it, estimated from what the tables say of
//! themselves. Pure.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use crate::items::api::TableSize;

/// List prices in us-east-1, in dollars (aws.amazon.com/dynamodb/pricing/on-demand and
/// aws.amazon.com/s3/pricing, November 2026): a million read request units, a thousand HEAD
/// requests, a GB of export.
const MILLION_READ_UNITS: f64 = 0.125;
const THOUSAND_HEADS: f64 = 0.0004;
const EXPORT_GB: f64 = 0.10;

/// A consistent read takes one unit per 4 KB of each item, or part of them, if items are read by
/// key; of the sum of a page if they are scanned (DynamoDB Developer Guide, "Read consistency").
const UNIT_BYTES: u64 = 4096;

/// Which keys are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Every item, by a scan.
    All,
    /// This many, by key.
    ByKey(u64),
}

/// An estimate.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cost {
    pub(crate) items: u64,
    pub(crate) read_units: u64,
    pub(crate) heads: u64,
    /// What a full export of both tables would come to instead.
    pub(crate) export_gb: f64,
}

/// The cost of reading these keys of both tables; `has_archive`: their objects are asked for, too.
pub(crate) fn estimate([sessions, scans]: [TableSize; 2], reads: Reads, has_archive: bool) -> Cost {
    let all = sessions.items + scans.items;
    let bytes = sessions.bytes + scans.bytes;
    let (items, read_units) = match reads {
        Reads::All => (all, bytes.div_ceil(UNIT_BYTES)),
        Reads::ByKey(keys) => {
            let average = bytes.checked_div(all).unwrap_or(0).max(1);
            (keys, keys * average.div_ceil(UNIT_BYTES))
        }
    };
    let heads = if has_archive { items } else { 0 };
    Cost { items, read_units, heads, export_gb: bytes as f64 / 1e9 }
}

impl Cost {
    /// Dollars for the reads and the HEAD requests.
    pub(crate) fn dollars(&self) -> f64 {
        self.read_units as f64 / 1e6 * MILLION_READ_UNITS + self.heads as f64 / 1e3 * THOUSAND_HEADS
    }

    fn export_dollars(&self) -> f64 {
        self.export_gb * EXPORT_GB
    }

    /// For people.
    pub(crate) fn text(&self, source: &str) -> String {
        let Self { items, read_units, heads, export_gb } = self;
        let mut text = format!("dry run, nothing was read ({source}):\n");
        let (dollars, export) = (self.dollars(), self.export_dollars());
        let _ = writeln!(text, "  items       {items:>14}  as the tables last counted them");
        let _ = writeln!(text, "  read units  {read_units:>14}  beside those of what differs");
        if *heads > 0 {
            let _ = writeln!(text, "  HEADs       {heads:>14}  of objects");
        }
        let _ = writeln!(text, "  cost        {dollars:>14.2}  dollars, on demand in us-east-1");
        let _ = writeln!(
            text,
            "A full export of both tables has about {export_gb:.1} GB and costs {export:.2} \
             dollars; `--export` reads it without read units but for what differs."
        );
        text
    }

    /// As the members of the result.
    pub(crate) fn json(&self, source: &str) -> Json {
        json!({
            "dry_run": true,
            "source": source,
            "items": self.items,
            "read_units": self.read_units,
            "heads": self.heads,
            "dollars": self.dollars(),
            "export_gb": self.export_gb,
            "export_dollars": self.export_dollars(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Reads, TableSize, estimate};

    #[test]
    fn a_scan_pays_for_bytes_and_a_key_for_its_own_item() {
        let sizes = [
            TableSize { items: 1_000_000, bytes: 400_000_000 },
            TableSize { items: 2_000_000, bytes: 40_000_000_000 },
        ];
        let all = estimate(sizes, Reads::All, true);
        assert_eq!((all.items, all.read_units, all.heads), (3_000_000, 9_863_282, 3_000_000));
        assert!((all.dollars() - (1.2329 + 1.2)).abs() < 0.001, "{}", all.dollars());
        // An item has 13,466 bytes on average: four units.
        let some = estimate(sizes, Reads::ByKey(1_000), false);
        assert_eq!((some.items, some.read_units, some.heads), (1_000, 4_000, 0));
        let none = estimate([TableSize::default(); 2], Reads::ByKey(10), false);
        assert_eq!(none.read_units, 10);
    }
}
