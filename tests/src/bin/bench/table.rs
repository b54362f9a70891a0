//! Prints the results.

/// A table that grows as things are measured.
#[derive(Default)]
pub struct Table {
    rows: Vec<[String; 5]>,
}

impl Table {
    /// Adds a row, and prints it so that there is something to look at.
    pub fn row(&mut self, what: &str, figure: String, reference: String, ratio: String, goal: &str) {
        eprintln!("  {what}: {figure}  [{reference}]  {ratio}");
        self.rows.push([what.to_owned(), figure, reference, ratio, goal.to_owned()]);
    }

    /// The table, as Markdown that is readable as it is.
    pub fn print(&self) {
        let head = ["what", "rouse", "in the same run", "ratio", "goal"].map(str::to_owned);
        let line = head.clone().map(|_| "-".to_owned());
        let mut widths = [0; 5];
        for row in self.rows.iter().chain([&head]) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in [&head, &line].into_iter().chain(&self.rows) {
            let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            println!("| {} |", cells.join(" | "));
        }
    }
}
