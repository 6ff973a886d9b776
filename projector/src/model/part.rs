//! The three parts of a measurement, and one value for each of them. Pure.

use std::ops::{Index, IndexMut};

/// The three parts of a measurement. Each has its own version; the row as a whole has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Who measured, when, and with which device: the item of the `sessions` table.
    Session,
    /// The left foot's scan: an item of the `scans` table.
    Left,
    /// The right foot's scan: an item of the `scans` table.
    Right,
}

impl Part {
    /// How many parts a measurement has.
    pub const COUNT: usize = 3;

    /// All parts, in column order.
    pub const ALL: [Self; Self::COUNT] = [Self::Session, Self::Left, Self::Right];

    /// `session`, `left` or `right`: the prefix of the part's version and change time.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Left => "left",
            Self::Right => "right",
        }
    }
}

/// One value for each part, in column order. Only a [`Part`] is an index, so no index is out of
/// range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerPart<T>([T; Part::COUNT]);

impl<T> PerPart<T> {
    /// The value that `of` gives for each part.
    pub fn from_fn(of: impl FnMut(Part) -> T) -> Self {
        Self(Part::ALL.map(of))
    }

    /// As [`PerPart::from_fn`], if `of` can fail.
    ///
    /// # Errors
    /// The first error of `of`.
    pub fn try_from_fn<E>(mut of: impl FnMut(Part) -> Result<T, E>) -> Result<Self, E>
    where
        T: Default,
    {
        let mut values = Self::from_fn(|_| T::default());
        for part in Part::ALL {
            values[part] = of(part)?;
        }
        Ok(values)
    }

    /// Another value for each part, made of this one.
    pub fn map<U>(self, of: impl FnMut(T) -> U) -> PerPart<U> {
        PerPart(self.0.map(of))
    }

    /// The values, in column order.
    pub fn values(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }
}

impl PerPart<Option<String>> {
    /// The same as borrowed texts.
    #[must_use]
    pub fn as_deref(&self) -> PerPart<Option<&str>> {
        PerPart(self.0.each_ref().map(Option::as_deref))
    }
}

impl<T> From<[T; Part::COUNT]> for PerPart<T> {
    /// Values in column order, as a statement returns them.
    fn from(values: [T; Part::COUNT]) -> Self {
        Self(values)
    }
}

impl<T> From<PerPart<T>> for [T; Part::COUNT] {
    fn from(values: PerPart<T>) -> Self {
        values.0
    }
}

impl<T> Index<Part> for PerPart<T> {
    type Output = T;

    fn index(&self, part: Part) -> &T {
        let [session, left, right] = &self.0;
        match part {
            Part::Session => session,
            Part::Left => left,
            Part::Right => right,
        }
    }
}

impl<T> IndexMut<Part> for PerPart<T> {
    fn index_mut(&mut self, part: Part) -> &mut T {
        let [session, left, right] = &mut self.0;
        match part {
            Part::Session => session,
            Part::Left => left,
            Part::Right => right,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Part, PerPart};

    #[test]
    fn a_part_indexes_its_own_value_in_column_order() {
        let mut names = PerPart::from_fn(Part::name);
        for part in Part::ALL {
            assert_eq!(names[part], part.name());
        }
        assert_eq!(names, PerPart::from(["session", "left", "right"]));
        names[Part::Left] = "l";
        assert!(names.values().eq(&["session", "l", "right"]));
        assert_eq!(<[_; 3]>::from(names.map(str::len)), [7, 1, 5]);
    }
}
