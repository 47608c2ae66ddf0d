//! The box: reads a [`stasis_tests::case::Spec`] file and runs it in fresh namespaces (see [`stasis_tests::init`]).

fn main() {
    stasis_tests::init::main_if_box();
    stasis_tests::runtimes::main_if_runtimes();
    eprintln!("this program is started by the test harness only");
    std::process::exit(2);
}
