//! Locks the network namespace of a process until standard input ends: `cargo run --example hold -- PID ebpf|nftables`.
use stasis_kernel::ids::HostPid;
use stasis_kernel::ns::Ns;
use stasis_netlock::{Lock, Means, Scope};
use std::io::Read;
use std::os::fd::AsFd;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let pid: i32 = args.next().ok_or("a pid")?.parse()?;
    let means = match args.next().as_deref() {
        Some("nftables") => Means::Nftables,
        _ => Means::Ebpf,
    };
    let begun = Instant::now();
    let mut lock = Lock::prepare(
        Ns::Net.of(HostPid(pid))?.as_fd(),
        Scope::WholeNamespace,
        means,
    )?;
    let prepared = begun.elapsed();
    let begun = Instant::now();
    lock.arm(&[])?;
    println!(
        "{} prepared in {prepared:?}, armed in {:?}",
        lock.id(),
        begun.elapsed()
    );
    std::io::stdin().read_to_end(&mut Vec::new())?;
    let begun = Instant::now();
    lock.open()?;
    let opened = begun.elapsed();
    let begun = Instant::now();
    lock.release()?;
    println!("opened in {opened:?}, released in {:?}", begun.elapsed());
    Ok(())
}
