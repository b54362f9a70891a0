//! The agent's program.

fn main() {
    rouse_agent::runner::zygote_main_if_asked();
}
