use super::*;

struct Map(*mut u8, usize);

impl Map {
    /// `pages` anonymous pages with protection `prot`.
    fn new(pages: usize, prot: i32) -> Self {
        let len = pages * 4096;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                prot,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(p, libc::MAP_FAILED);
        Map(p.cast(), len)
    }
    fn protect(&self, page: usize, prot: i32) {
        // SAFETY: inside our own mapping, which nothing else refers to.
        let ret = unsafe { libc::mprotect(self.0.add(page * 4096).cast(), 4096, prot) };
        assert_eq!(ret, 0);
    }
    fn at(&self, off: usize) -> RemotePtr {
        RemotePtr(self.0 as u64 + off as u64)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: our own mapping, no references into it remain.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

#[test]
fn write_then_read() {
    let m = Map::new(3, RW);
    let me = HostPid::own();
    let data: Vec<u8> = (0..9000u32).map(|i| i as u8).collect();
    write(me, m.at(100), &data).unwrap();
    let mut back = vec![0; data.len()];
    read(me, m.at(100), &mut back).unwrap();
    assert_eq!(back, data);
    let mut two = vec![0; 30];
    let ranges = [
        RemoteRange {
            addr: m.at(100),
            len: 10,
        },
        RemoteRange {
            addr: m.at(0),
            len: 0,
        },
        RemoteRange {
            addr: m.at(5000),
            len: 20,
        },
    ];
    readv(me, &ranges, &mut two).unwrap();
    assert_eq!(two[..10], data[..10]);
    assert_eq!(two[10..], data[4900..4920]);
    assert_eq!(read_u64(me, m.at(100)).unwrap(), 0x0706050403020100);
}

#[test]
fn a_hole_is_named() {
    let m = Map::new(3, RW);
    m.protect(1, libc::PROT_NONE);
    let me = HostPid::own();
    let mut buf = vec![0; 3 * 4096];
    assert_eq!(read_some(me, m.at(0), &mut buf).unwrap(), 4096);
    let e = read(me, m.at(0), &mut buf).unwrap_err();
    assert_eq!(e.errno, Errno::EFAULT);
    assert!(e.what.contains(&m.at(4096).to_string()), "{e}");
    let e = readv(
        me,
        &[RemoteRange {
            addr: m.at(0),
            len: 3 * 4096,
        }],
        &mut buf,
    )
    .unwrap_err();
    assert!(e.what.contains(&m.at(4096).to_string()), "{e}");
    let e = write(me, m.at(4000), &[1; 200]).unwrap_err();
    assert!(e.what.contains(&m.at(4096).to_string()), "{e}");
}

#[test]
fn more_ranges_than_one_call_takes() {
    let m = Map::new(2, RW);
    let me = HostPid::own();
    let data: Vec<u8> = (0..8192u32).map(|i| (i * 7) as u8).collect();
    write(me, m.at(0), &data).unwrap();
    let ranges: Vec<_> = (0..2500)
        .map(|i| RemoteRange {
            addr: m.at(i * 3),
            len: i % 4,
        })
        .collect();
    let want: Vec<u8> = ranges
        .iter()
        .enumerate()
        .flat_map(|(i, r)| data[i * 3..i * 3 + r.len].to_vec())
        .collect();
    let mut got = vec![0; want.len()];
    readv(me, &ranges, &mut got).unwrap();
    assert!(got == want);
    assert_eq!(
        readv(me, &ranges, &mut got[1..]).unwrap_err().errno,
        Errno::EINVAL
    );
}

#[test]
fn mem_goes_through_protections() {
    let m = Map::new(1, libc::PROT_READ);
    let me = HostPid::own();
    assert_eq!(
        write(me, m.at(8), b"hello").unwrap_err().errno,
        Errno::EFAULT
    );
    let mem = Mem::open(me).unwrap();
    mem.write(m.at(8), b"hello").unwrap();
    let mut b = [0; 5];
    mem.read(m.at(8), &mut b).unwrap();
    assert_eq!(&b, b"hello");
    assert_eq!(
        mem.read(RemotePtr(0x10), &mut b).unwrap_err().errno,
        Errno::EIO
    );
}

#[test]
fn strings() {
    let m = Map::new(2, RW);
    let me = HostPid::own();
    m.protect(1, libc::PROT_NONE);
    let s = [vec![b'x'; 300], vec![0]].concat();
    write(me, m.at(4096 - 301), &s).unwrap();
    assert_eq!(
        read_cstr(me, m.at(4096 - 301), 4096).unwrap(),
        vec![b'x'; 300]
    );
    assert_eq!(
        read_cstr(me, m.at(4096 - 301), 100).unwrap_err().errno,
        Errno::ENAMETOOLONG
    );
}
