//! Prints every image of a folder as JSON, one line per file: `cargo run -p stasis-proto --example decode DIR`.
//! Errors go to stderr, one line per file, and make the exit status 1.

use stasis_proto::ImageDir;
use stasis_proto::show::Schema;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: decode DIR");
        return ExitCode::from(2);
    };
    let schema = Schema::new();
    let dir = match ImageDir::open(&path) {
        Ok(dir) => dir,
        Err(error) => {
            eprintln!("{}: {error}", error.code());
            return ExitCode::FAILURE;
        }
    };
    let names = match dir.list() {
        Ok(names) => names,
        Err(error) => {
            eprintln!("{}: {error}", error.code());
            return ExitCode::FAILURE;
        }
    };
    let mut status = ExitCode::SUCCESS;
    for name in names {
        match schema.show(&dir, &name) {
            Ok(shown) => println!("{shown}"),
            Err(error) => {
                eprintln!("{}: {error}", error.code());
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}
