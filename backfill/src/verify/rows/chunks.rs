//! Pure: digests of consecutive rows, and which of them differ.

use std::collections::BTreeMap;

/// Some consecutive rows of the side that leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// The last key. The first one comes after the last key of the chunk before it.
    pub(crate) last: String,
    pub(crate) sum: Sum,
}

/// What two chunks of equal rows have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    /// The rows read.
    pub(crate) rows: u64,
    /// Those of them that are compared.
    pub(crate) compared: u64,
    /// The sum of their digests, a decimal number.
    pub(crate) digests: String,
}

impl Sum {
    fn equals(&self, other: &Self) -> bool {
        let both_empty = self.compared == 0 && other.compared == 0;
        both_empty || (self.compared == other.compared && self.digests == other.digests)
    }
}

/// The rows after one key, up to and with another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) after: String,
    pub(crate) through: String,
}

/// The spans that differ, and how many rows are compared and equal. `sums` are the rows of the
/// other side by the place of their chunk.
pub(crate) fn differing(
    after: &str,
    chunks: &[Chunk],
    sums: &BTreeMap<usize, Sum>,
) -> (Vec<Span>, u64) {
    let (mut spans, mut equal): (Vec<Span>, u64) = (Vec::new(), 0);
    let (mut before, none) = (after, Sum::default());
    for (place, chunk) in chunks.iter().enumerate() {
        if chunk.sum.equals(sums.get(&place).unwrap_or(&none)) {
            equal += chunk.sum.compared;
        } else {
            match spans.last_mut() {
                Some(span) if span.through == before => span.through.clone_from(&chunk.last),
                _ => spans.push(Span { after: before.to_owned(), through: chunk.last.clone() }),
            }
        }
        before = &chunk.last;
    }
    (spans, equal)
}

#[cfg(test)]
mod tests {
    use super::{Chunk, Span, Sum, differing};

    fn sum(compared: u64, digests: &str) -> Sum {
        Sum { rows: 10, compared, digests: digests.to_owned() }
    }

    #[test]
    fn neighbors_that_differ_are_one_span() {
        let chunks = [("c", 3, "1"), ("f", 2, "2"), ("i", 2, "3"), ("m", 0, "0"), ("p", 2, "5")];
        let chunks = chunks
            .map(|(last, rows, digests)| Chunk { last: last.to_owned(), sum: sum(rows, digests) });
        let others = [(0, sum(3, "1")), (1, sum(2, "9")), (2, sum(1, "3")), (4, sum(3, "5"))];
        let (spans, equal) = differing("a", &chunks, &others.into_iter().collect());
        let span = |after: &str, through: &str| Span {
            after: after.to_owned(),
            through: through.to_owned(),
        };
        assert_eq!(spans, [span("c", "i"), span("m", "p")]);
        assert_eq!(equal, 3);
    }
}
