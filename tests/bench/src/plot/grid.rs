//! A table of counts, of which 0 is good: green cells, and red ones with their count.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Area, Drawn, Plot, SIZE, thousands};

const TITLE_HEIGHT: i32 = 46;
const NAMES_WIDTH: i32 = 210;
const COLUMNS_HEIGHT: i32 = 26;
const X_HEIGHT: i32 = 34;
/// Between cells.
const GAP: i32 = 2;
const GOOD: RGBColor = RGBColor(203, 232, 203);
const BAD: RGBColor = RGBColor(244, 190, 184);
const INK: RGBColor = RGBColor(40, 40, 40);

/// Draws the rows from the top.
pub(super) fn draw<'a>(plot: &Plot, root: &Area<'a>) -> Drawn<'a> {
    let (width, height) = (i32::try_from(SIZE.0)?, i32::try_from(SIZE.1)?);
    let title = ("sans-serif", 16).into_font().color(&INK);
    root.draw(&Text::new(plot.title.as_str(), (16, 16), title))?;
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

fn text<'a>(root: &Area<'a>, text: &str, place: (i32, i32), side: HPos) -> Drawn<'a> {
    let style = ("sans-serif", 13).into_font().color(&INK).pos(Pos::new(side, VPos::Center));
    root.draw(&Text::new(text, place, style)).map_err(Into::into)
}
