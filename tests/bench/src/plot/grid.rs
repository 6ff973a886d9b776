//! A table of counts, of which 0 is good: green cells, and red ones with their count.

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{Area, Drawn, NAMES_WIDTH, Plot, SIZE, text, thousands, title};

const TITLE_HEIGHT: i32 = 46;
const COLUMNS_HEIGHT: i32 = 26;
const X_HEIGHT: i32 = 34;
/// Between cells.
const GAP: i32 = 2;
const GOOD: RGBColor = RGBColor(203, 232, 203);
const BAD: RGBColor = RGBColor(244, 190, 184);

/// Draws the rows from the top.
pub(super) fn draw<'a>(plot: &Plot, root: &Area<'a>) -> Drawn<'a> {
    let (width, height) = (i32::try_from(SIZE.0)?, i32::try_from(SIZE.1)?);
    title(plot, root)?;
    let columns = i32::try_from(plot.columns.len().max(1))?;
    let rows = i32::try_from(plot.series.len().max(1))?;
    let cell_width = (width - NAMES_WIDTH - 16) / columns;
    let top = TITLE_HEIGHT + COLUMNS_HEIGHT;
    let cell_height = (height - top - X_HEIGHT) / rows;
    for (name, column) in plot.columns.iter().zip(0..) {
        let middle = NAMES_WIDTH + column * cell_width + cell_width / 2;
        text(root, name, (middle, TITLE_HEIGHT + COLUMNS_HEIGHT / 2), HPos::Center)?;
    }
    for ((name, points), row) in plot.series.iter().zip(0..) {
        let upper = top + row * cell_height;
        let middle = upper + cell_height / 2;
        text(root, name, (NAMES_WIDTH - 8, middle), HPos::Right)?;
        for ((_, count), column) in points.iter().zip(0..) {
            let left = NAMES_WIDTH + column * cell_width;
            let colour = if *count == 0.0 { GOOD } else { BAD };
            let corners = [(left, upper), (left + cell_width - GAP, upper + cell_height - GAP)];
            root.draw(&Rectangle::new(corners, colour.filled()))?;
            let place = (left + cell_width / 2, middle);
            text(root, &thousands(*count), place, HPos::Center)?;
        }
    }
    text(root, &plot.x, (NAMES_WIDTH, height - X_HEIGHT / 2), HPos::Left)
}
