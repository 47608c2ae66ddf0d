use super::*;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

fn link(s: UnixStream) -> Box<dyn Link> {
    Box::new(TcpStream::from(OwnedFd::from(s)))
}

fn both(dir: &ImageDir, talk: impl FnOnce(&mut Client) -> Result<()> + Send) -> Result<u64> {
    let (a, b) = UnixStream::pair().unwrap();
    std::thread::scope(|s| {
        let client = s.spawn(|| {
            let mut c = Client::on(link(a), false, None);
            talk(&mut c)
        });
        let r = receive(link(b), dir, None);
        let told = client.join().unwrap();
        r.inspect(|_| told.unwrap())
    })
}

#[test]
fn pages_arrive_where_a_restore_finds_them() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = ImageDir::create(tmp.path()).unwrap();
    let n = both(&dir, |c| {
        for pid in [7, 8] {
            c.open(pid)?;
            c.add(pid, 0x1000, 2, true)?;
            c.pages(&[pid as u8; 8192])?;
            c.add(pid, 0x9000, 1, false)?;
            c.pages(&[99; 4096])?;
        }
        c.close()
    });
    assert_eq!(n.unwrap(), 6);
    let p = crate::pages::Pages::load(&dir, "pagemap-8.img").unwrap();
    assert_eq!(p.runs, [(0x1000, 0x2000, 0), (0x9000, 0x1000, 0x2000)]);
    assert_eq!(p.sources[0].id, FIRST_ID + 1);
    let mut one = [0; 1];
    p.open(&dir).unwrap().read(&mut one, 0x1fff).unwrap();
    assert_eq!(one, [8]);
}

#[test]
fn pages_go_over_several_connections_where_the_server_takes_them() {
    let one = |takes: bool| {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::create(tmp.path()).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let server = Server {
            host: at.ip().to_string(),
            port: at.port(),
            connected: None,
            tls: None,
        };
        std::thread::scope(|s| {
            let client = s.spawn(move || {
                let mut c = Client::connect(&server).unwrap();
                for pid in [7, 8] {
                    c.open(pid).unwrap();
                    c.add(pid, 0x1000, 300, true).unwrap();
                    let bytes = vec![pid as u8; 300 * PAGE as usize];
                    match c.apart() {
                        // in any order
                        Some(to) => {
                            to.put(PAGE, &bytes[PAGE as usize..]).unwrap();
                            to.put(0, &bytes[..PAGE as usize]).unwrap();
                            to.end(300 * PAGE).unwrap();
                        }
                        None => c.pages(&bytes).unwrap(),
                    }
                }
                c.close().unwrap();
                c.stream.is_some()
            });
            let from = Box::new(listener.accept().unwrap().0);
            let more = Callers {
                listener,
                tls: None,
            };
            let n = receive(from, &dir, takes.then_some(&more)).unwrap();
            assert_eq!((n, client.join().unwrap()), (600, takes));
        });
        for id in [7u8, 8] {
            let p = crate::pages::Pages::load(&dir, &format!("pagemap-{id}.img")).unwrap();
            let mut all = vec![0; 300 * PAGE as usize];
            p.open(&dir).unwrap().read(&mut all, 0).unwrap();
            assert!(all.iter().all(|b| *b == id));
        }
    };
    one(true);
    one(false);
}

#[test]
fn nonsense_from_a_connection_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = ImageDir::create(tmp.path()).unwrap();
    let code = |talk: &(dyn Fn(&mut Client) -> Result<()> + Sync)| {
        both(&dir, |c| talk(c).or(Ok(()))).unwrap_err().code
    };
    assert_eq!(code(&|c| c.add(7, 0x1000, 1, false)), "E5710");
    assert_eq!(code(&|c| c.say(77, 0, 0, 0)), "E5710");
    assert_eq!(code(&|c| c.say(OPEN2, 0, 0, 7 << 8 | 99)), "E5710");
    let overlap = |c: &mut Client| {
        c.open(7)?;
        c.say(ADD_F | IN_PARENT << 16, 1, 0x1000, 7 << 8 | 1)
    };
    assert_eq!(code(&overlap), "E5710");
    let huge = |c: &mut Client| {
        c.open(7)?;
        c.add(7, 0x1000, u64::MAX / 2, false)
    };
    assert_eq!(code(&huge), "E5710");
    assert_eq!(code(&|c| c.open(7)), "E6710");
    let apart = |c: &mut Client| {
        c.open(7)?;
        c.say(ADD_F | (PRESENT | APART) << 16, 1, 0x1000, 7 << 8 | 1)
    };
    assert_eq!(code(&apart), "E5710");
}
