//! The shards of one stream as a forest: which may be read, and which must wait for their parents.
//!
//! Pure. A shard becomes ready when its parent is finished. A parent that is not listed is asked
//! for beside its children, which do not wait for it. The API names one parent per shard, even
//! after partitions merged: the other parent is then read beside the child. Both are harmless,
//! because versions decide what a row keeps.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A shard as `DescribeStream` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) id: String,
    pub(crate) parent: Option<String>,
    /// It has an ending sequence number: no record will be added.
    pub(crate) closed: bool,
}

/// Why the pages of one description cannot all be true at one time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Disagreement {
    #[error("shard {0} is listed with two parents")]
    TwoParents(String),
    #[error("shard {0} is its own ancestor")]
    OwnAncestor(String),
    #[error("shard {0} was closed between two pages")]
    ClosedMeanwhile(String),
    #[error("shard {0} is closed and has no child in a stream that is enabled")]
    NoChild(String),
}

impl Disagreement {
    /// Whether the shards can be read even if the listing stays as it is: a shard is read to its
    /// end whatever a listing says of it, and its children are then looked for again.
    pub(crate) fn is_harmless(&self) -> bool {
        match self {
            Self::TwoParents(_) | Self::OwnAncestor(_) => false,
            Self::ClosedMeanwhile(_) | Self::NoChild(_) => true,
        }
    }
}

/// What the pages of one description contradict themselves in; the worst first.
pub(crate) fn disagreement(pages: &[Vec<Shard>], enabled: bool) -> Option<Disagreement> {
    let mut shards: BTreeMap<&str, &Shard> = BTreeMap::new();
    let mut closed_meanwhile = None;
    for shard in pages.iter().flatten() {
        let Some(earlier) = shards.insert(&shard.id, shard) else { continue };
        if earlier.parent != shard.parent {
            return Some(Disagreement::TwoParents(shard.id.clone()));
        }
        if earlier.closed != shard.closed {
            closed_meanwhile.get_or_insert(&shard.id);
        }
    }
    // Each shard is walked over once: it is known after that to have a beginning.
    let mut with_a_beginning = BTreeSet::new();
    for start in shards.values() {
        let mut path = BTreeSet::new();
        let mut next = Some(*start);
        while let Some(shard) = next.filter(|shard| !with_a_beginning.contains(shard.id.as_str())) {
            if !path.insert(shard.id.as_str()) {
                return Some(Disagreement::OwnAncestor(shard.id.clone()));
            }
            next = shard.parent.as_deref().and_then(|parent| shards.get(parent).copied());
        }
        with_a_beginning.extend(path);
    }
    let parents: BTreeSet<&str> =
        shards.values().filter_map(|shard| shard.parent.as_deref()).collect();
    for shard in shards.values().filter(|shard| !shard.closed) {
        if parents.contains(shard.id.as_str()) {
            closed_meanwhile.get_or_insert(&shard.id);
        }
    }
    if let Some(id) = closed_meanwhile {
        return Some(Disagreement::ClosedMeanwhile(id.clone()));
    }
    let childless =
        shards.values().find(|shard| shard.closed && !parents.contains(shard.id.as_str()));
    childless.filter(|_| enabled).map(|shard| Disagreement::NoChild(shard.id.clone()))
}

/// The shards of all pages, each once; closed where any page says so.
pub(crate) fn merge_pages(pages: Vec<Vec<Shard>>) -> Vec<Shard> {
    let mut shards: BTreeMap<String, Shard> = BTreeMap::new();
    for shard in pages.into_iter().flatten() {
        let closed = shard.closed;
        shards.entry(shard.id.clone()).or_insert(shard).closed |= closed;
    }
    shards.into_values().collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    /// Handed out to be read.
    Started,
    Finished,
}

#[derive(Debug)]
struct Node {
    shard: Shard,
    state: State,
    /// No listing has it: a child named it. Its children do not wait for it, since as a rule it is
    /// trimmed away.
    only_named: bool,
}

/// What is known of a stream's shards, over all descriptions of one run.
#[derive(Debug, Default)]
pub(crate) struct Lineage {
    shards: BTreeMap<String, Node>,
    /// By parent, listed or not.
    children: HashMap<String, Vec<String>>,
    ready: BTreeSet<String>,
}

impl Lineage {
    /// Adds what a description lists. A shard that is known already can only have been closed
    /// since; one that is not listed any more stays: whoever reads it finds out that it is gone.
    pub(crate) fn extend(&mut self, shards: impl IntoIterator<Item = Shard>) {
        let mut added = Vec::new();
        for shard in shards {
            if let Some(known) = self.shards.get_mut(&shard.id) {
                known.shard.closed |= shard.closed;
                continue;
            }
            if let Some(parent) = &shard.parent {
                self.children.entry(parent.clone()).or_default().push(shard.id.clone());
            }
            added.push(shard.id.clone());
            let node = Node { shard, state: State::Waiting, only_named: false };
            self.shards.insert(node.shard.id.clone(), node);
        }
        for id in added {
            // A parent that is listed after its child: the child waits, unless it has begun.
            for child in self.children.get(&id).into_iter().flatten() {
                self.ready.remove(child);
            }
            if self.may_start(&id) {
                self.ready.insert(id);
            }
        }
    }

    fn may_start(&self, id: &str) -> bool {
        let Some(node) = self.shards.get(id) else { return false };
        let parent = node.shard.parent.as_ref().and_then(|parent| self.shards.get(parent));
        let may = |parent: &Node| parent.state == State::Finished || parent.only_named;
        node.state == State::Waiting && parent.is_none_or(may)
    }

    /// The shards that may be read now, each handed out once, in the order of their ids (which
    /// begin with the time at which a shard was made).
    pub(crate) fn take_ready(&mut self) -> Vec<Shard> {
        let mut taken = Vec::with_capacity(self.ready.len());
        for id in std::mem::take(&mut self.ready) {
            let node = self.shards.get_mut(&id).expect("what is ready is listed");
            node.state = State::Started;
            taken.push(node.shard.clone());
        }
        taken
    }

    /// A shard was read to its end, now or in an earlier run: its children may be read.
    pub(crate) fn finish(&mut self, id: &str) {
        let Some(node) = self.shards.get_mut(id) else { return };
        node.state = State::Finished;
        self.ready.remove(id);
        for child in self.children.get(id).cloned().unwrap_or_default() {
            if self.may_start(&child) {
                self.ready.insert(child);
            }
        }
    }

    pub(crate) fn contains(&self, id: &str) -> bool {
        self.shards.contains_key(id)
    }

    /// The shards that are named as a parent and not listed themselves: trimmed away, or left out
    /// of the listing.
    pub(crate) fn unlisted_parents(&self) -> Vec<String> {
        self.children.keys().filter(|id| !self.shards.contains_key(*id)).cloned().collect()
    }

    /// A shard that only a child names is being asked for, beside its children.
    pub(crate) fn start_named(&mut self, id: &str) {
        let shard = Shard { id: id.to_owned(), parent: None, closed: true };
        let node = Node { shard, state: State::Started, only_named: true };
        self.shards.entry(id.to_owned()).or_insert(node);
    }

    /// No more records are added to it: a listing shows its end, or a child.
    pub(crate) fn is_closed(&self, id: &str) -> bool {
        self.has_children(id) || self.shards.get(id).is_some_and(|node| node.shard.closed)
    }

    /// A shard that waits for a parent that will not end, other than one that `goes_on` after the
    /// cutoff; and that parent. While nothing is being read, there must be none.
    pub(crate) fn stuck(&self, goes_on: impl Fn(&str) -> bool) -> Option<(&str, &str)> {
        let waiting = self.shards.values().filter(|node| node.state == State::Waiting);
        let mut stuck = waiting.filter_map(|node| {
            let parent = node.shard.parent.as_deref()?;
            Some((node.shard.id.as_str(), parent))
        });
        stuck.find(|(_, parent)| {
            let parent_waits =
                self.shards.get(*parent).is_some_and(|node| node.state == State::Waiting);
            !parent_waits && !goes_on(parent)
        })
    }

    pub(crate) fn has_children(&self, id: &str) -> bool {
        self.children.contains_key(id)
    }

    /// How many shards are known.
    pub(crate) fn len(&self) -> usize {
        self.shards.len()
    }
}

#[cfg(test)]
mod tests {
    use super::{Disagreement, Lineage, Shard, disagreement, merge_pages};

    /// `a` is open, `A.` closed; `b<a` has a parent.
    fn shards(text: &str) -> Vec<Shard> {
        let shard = |text: &str| {
            let (text, closed) = text.strip_suffix('.').map_or((text, false), |text| (text, true));
            let (id, parent) =
                text.split_once('<').map_or((text, None), |(id, parent)| (id, Some(parent)));
            Shard { id: id.to_owned(), parent: parent.map(str::to_owned), closed }
        };
        text.split_whitespace().map(shard).collect()
    }

    /// The waves in which the shards become ready, each finished before the next is asked for.
    fn waves(listed: &str) -> Vec<String> {
        let mut lineage = Lineage::default();
        lineage.extend(shards(listed));
        let mut waves = Vec::new();
        loop {
            let ready = lineage.take_ready();
            if ready.is_empty() {
                return waves;
            }
            let ids: Vec<&str> = ready.iter().map(|shard| shard.id.as_str()).collect();
            waves.push(ids.join(" "));
            for shard in &ready {
                lineage.finish(&shard.id);
            }
        }
    }

    #[test]
    fn children_wait_for_their_parents() {
        for (listed, expected) in [
            ("", vec![]),
            ("a", vec!["a"]),
            ("b a", vec!["a b"]),
            ("a. b<a. c<b", vec!["a", "b", "c"]),
            // The order of the listing does not matter.
            ("c<b b<a. a.", vec!["a", "b", "c"]),
            // A split into two, and generations of unequal depth.
            ("a. b<a c<a. d<c x. y<x", vec!["a x", "b c y", "d"]),
            // A parent that was trimmed away counts as finished.
            ("b<a. c<b", vec!["b", "c"]),
            // A merge as the API tells it: one of the two parents is named.
            ("a. b. c<a", vec!["a b", "c"]),
        ] {
            assert_eq!(waves(listed), expected, "{listed}");
        }
    }

    #[test]
    fn a_child_is_not_ready_while_its_parent_is_only_started() {
        let mut lineage = Lineage::default();
        lineage.extend(shards("a. b<a"));
        assert_eq!(lineage.take_ready().len(), 1);
        assert_eq!(lineage.take_ready(), []);
        lineage.finish("a");
        assert_eq!(lineage.take_ready(), shards("b<a"));
        assert_eq!(lineage.take_ready(), []);
    }

    #[test]
    fn a_later_description_adds_children_and_takes_nothing_away() {
        let mut lineage = Lineage::default();
        lineage.extend(shards("a x"));
        assert_eq!(lineage.take_ready().len(), 2);
        // `x` is not listed any more; `a` was closed and has a child.
        lineage.extend(shards("a. b<a"));
        assert_eq!(
            (lineage.len(), lineage.has_children("a"), lineage.has_children("x")),
            (3, true, false)
        );
        assert_eq!(lineage.take_ready(), []);
        lineage.finish("a");
        assert_eq!(lineage.take_ready(), shards("b<a"));
        // A child of a shard that is finished already is ready at once; an unknown shard is
        // nobody's.
        lineage.extend(shards("a. c<a"));
        assert_eq!(lineage.take_ready(), shards("c<a"));
        lineage.finish("nobody");
    }

    #[test]
    fn what_an_earlier_run_finished_is_not_read_again() {
        let mut lineage = Lineage::default();
        lineage.extend(shards("a. b<a. c<b"));
        lineage.finish("a");
        lineage.finish("b");
        assert_eq!(lineage.take_ready(), shards("c<b"));
    }

    #[test]
    fn pages_that_disagree_are_told() {
        use Disagreement::{ClosedMeanwhile, NoChild, OwnAncestor, TwoParents};
        for (pages, expected) in [
            (vec!["a. b<a", "x"], None),
            (vec!["a. b<a", "b<a"], None),
            // Its parent was trimmed away.
            (vec!["b<a"], None),
            (vec!["a b<a"], Some(ClosedMeanwhile("a".to_owned()))),
            (vec!["a", "a. b<a"], Some(ClosedMeanwhile("a".to_owned()))),
            (vec!["b<a", "b<c"], Some(TwoParents("b".to_owned()))),
            (vec!["a<b. b<a."], Some(OwnAncestor("a".to_owned()))),
            (vec!["a. b<a.", "c"], Some(NoChild("b".to_owned()))),
        ] {
            let pages: Vec<_> = pages.into_iter().map(shards).collect();
            assert_eq!(disagreement(&pages, true), expected, "{pages:?}");
        }
        // The shards of a stream that was disabled are all closed.
        assert_eq!(disagreement(&[shards("a. b<a.")], false), None);
    }

    #[test]
    fn merged_pages_hold_each_shard_once() {
        let pages = ["a b", "a. c<a", "b"].map(shards).to_vec();
        assert_eq!(merge_pages(pages), shards("a. b c<a"));
    }

    #[test]
    fn a_parent_that_is_not_listed_is_named() {
        let mut lineage = Lineage::default();
        lineage.extend(shards("b<a. c<b x"));
        assert_eq!(lineage.unlisted_parents(), ["a"]);
        // It is listed after all, and its child waits for it if it has not begun.
        lineage.extend(shards("a."));
        assert_eq!(lineage.unlisted_parents(), [""; 0]);
        assert_eq!(lineage.take_ready(), shards("a. x"));
        // Nobody waits for one that is only named.
        let mut lineage = Lineage::default();
        lineage.extend(shards("b<a."));
        lineage.start_named("a");
        assert_eq!(lineage.take_ready(), shards("b<a."));
    }

    #[test]
    fn a_shard_that_nobody_will_read_is_found() {
        let mut lineage = Lineage::default();
        lineage.extend(shards("a b<a c<b"));
        assert_eq!(lineage.take_ready().len(), 1);
        assert_eq!(lineage.stuck(|_| false), Some(("b", "a")));
        assert_eq!(lineage.stuck(|shard| shard == "a"), None, "a goes on after the cutoff");
        lineage.finish("a");
        lineage.finish("b");
        lineage.finish("c");
        assert_eq!(lineage.stuck(|_| false), None);
    }

    #[test]
    fn thousands_of_shards_are_no_work() {
        // 200 lineages of 100 generations: what is linear takes milliseconds, what is quadratic
        // minutes.
        let mut listed = Vec::new();
        for family in 0..200 {
            for generation in 0..100 {
                let parent = (generation > 0).then(|| format!("{:03}-{family}", generation - 1));
                let closed = generation < 99;
                listed.push(Shard { id: format!("{generation:03}-{family}"), parent, closed });
            }
        }
        fastrand::Rng::with_seed(7).shuffle(&mut listed);
        assert_eq!(disagreement(std::slice::from_ref(&listed), true), None);
        let mut lineage = Lineage::default();
        lineage.extend(listed);
        let mut read = 0;
        loop {
            let ready = lineage.take_ready();
            if ready.is_empty() {
                break;
            }
            for shard in ready {
                read += 1;
                lineage.finish(&shard.id);
            }
        }
        assert_eq!(read, 20_000);
    }
}
