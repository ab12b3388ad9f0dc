//! A front that was taken over: what it gets of the monitor, and what of a worker.

use super::kernels::version_of_landlock;
use super::*;

/// Takes a socket that keeps the borders of packets from a process that has been stopped: its first, by number.
const TAKEN: &str = r#"
import array, ctypes, json, os, select, signal, socket, sys
def stop(pid):
    os.kill(pid, signal.SIGSTOP)
    state = lambda task: open(f"/proc/{pid}/task/{task}/stat").read().rsplit(")", 1)[1].split()[0]
    while any(state(task) != "T" for task in os.listdir(f"/proc/{pid}/task")):
        pass
def taken(pid):
    packets = {line.split()[6] for line in open("/proc/net/unix") if line.split()[4] == "0005"}
    links = {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    fd = min(fd for fd, link in links.items() if link[8:-1] in packets)
    libc = ctypes.CDLL(None, use_errno=True)
    taken = libc.syscall(438, os.pidfd_open(pid), fd, 0)
    assert taken >= 0, os.strerror(ctypes.get_errno())
    return socket.socket(fileno=taken)
"#;

/// Says whatever it likes to the monitor: that forks nobody but who may have mail, and ends nothing but its own workers.
#[test]
fn a_hostile_front() {
    if not_root() {
        return;
    }
    let site = Site::new(4);
    let server = site.serve("[workers]\nmax = 4");
    // It has its name a moment after its sockets.
    wait_until("a front", || {
        children(&server)
            .iter()
            .any(|it| it.name == "postroom-front")
    });
    let front = front(&server);
    let mut bystander = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Its socket to the monitor is the first one of this kind.
    let script = r#"
front, monitor, bystander, uid = map(int, sys.argv[1:])
stop(front)
orders = taken(front)
def say(packet, beside=(), patience=5):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, bytes(b"".join(it.to_bytes(4, "little") for it in beside)))]
    orders.sendmsg([packet], rights if beside else [])
    answered, _, _ = select.select([orders], [], [], patience)
    if not answered:
        return None
    answer, rights, _, _ = orders.recvmsg(1 << 17, 64)
    return answer.decode()
def fork(uid, gid, groups=(), privileged=None, beside=()):
    who = {"uid": uid, "gid": gid, "groups": list(groups), "privileged": privileged}
    return say(json.dumps({"Fork": who}).encode(), beside)
hostile = [
    fork(0, 0), fork(0, uid), fork(uid, 0), fork(uid, uid, [0]), fork(100, uid), fork(65534, uid),
    fork(uid, uid, privileged=8), fork(4294967295, uid), fork(uid, 4294967295),
    fork(0, 0, beside=[0]), fork(0, 0, beside=[0, 1, 2]),
    say(b"rubbish"), say(b"{" * 65536), say(b"x" * 150000), say(b"\xff\xfe"), say(b'{"Fork":null}'), say(b'{"Kill":"1"}'),
]
for answer in hostile:
    print("hostile", answer)
for pid in [monitor, front, bystander, -1, 0]:
    print("kill", say(json.dumps({"Kill": pid}).encode(), patience=0.3))
for _ in range(100):
    print("flood", fork(uid, uid))
os.kill(front, signal.SIGCONT)
"#;
    let pids = [front.pid, server.pid(), bystander.id(), UID + 1];
    let mut python = Command::new("python3");
    python
        .args(["-c", &format!("{TAKEN}{script}")])
        .args(pids.map(|it| it.to_string()));
    let output = python.output().unwrap();
    signal(front.pid, "CONT");
    let said = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let lines = |of: &str| {
        let lines = said.lines().filter_map(|line| line.strip_prefix(of));
        lines.map(str::trim).collect::<Vec<_>>()
    };
    let hostile = lines("hostile");
    assert_eq!(hostile.len(), 17, "{said} {errors}");
    for answer in hostile {
        assert!(answer.starts_with("{\"Refused\":"), "{answer}: {said}");
    }
    assert_eq!(lines("kill"), ["None"; 5], "{said}");
    let flood = lines("flood");
    let forked = flood.iter().filter(|it| it.starts_with("{\"Worker\":"));
    assert_eq!((forked.count(), flood.len()), (4 + 16, 100), "{said}");
    assert!(bystander.try_wait().unwrap().is_none());
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    // And it goes on for everybody else.
    let replies = server.client().deliver(&["u1@x", "u2@x"], LETTER);
    assert!(
        replies.iter().all(|it| it.starts_with("250")),
        "{replies:?} {}",
        server.log()
    );
}

/// What comes with a message of a hostile front.
#[derive(Clone, Copy)]
enum Beside {
    Message,
    Nothing,
    Pipe,
    Directory,
    /// Of 600,000 bytes.
    Large,
    Two,
}

/// A front that was taken over says whatever it likes to workers: each stores as who it is, below the places that it began with, or not at all.
/// What a front says usually is taken from its socket to a worker, and a word of it is replaced.
#[test]
fn what_a_hostile_front_gets_of_a_worker() {
    if not_root() {
        return;
    }
    let site = Site::new(4);
    let (uid, two) = (UID + 1, UID + 2);
    site.scratch.dir("elsewhere", 0, 0, 0o755);
    site.scratch.dir("elsewhere/u1", uid, uid, 0o700);
    site.scratch.dir("anybody", 0, 0, 0o1777);
    let server = site.serve("[workers]\nmax = 64");
    let sent = server.client().deliver(&["u1@x", "u2@x"], LETTER);
    assert!(sent.iter().all(|it| it.starts_with("250")), "{sent:?}");
    let root = site.scratch.text("");
    let at = |text: &str| text.replace("ROOT", &root);
    let his = format!("\"uid\":{uid},\"gid\":{uid}");
    let others = format!("\"uid\":{two},\"gid\":{two}");
    let roots = "\"uid\":0,\"gid\":0";
    let has_landlock = version_of_landlock() >= 2;
    let elsewhere = match has_landlock {
        true => "\"Elsewhere\"",
        false => "\"Saved\"",
    };
    use Beside::{Directory, Large, Message, Nothing, Pipe, Two};
    // What is replaced, by what, whether that comes behind one that is as usual, what comes beside it, and the answer
    #[rustfmt::skip]
    let rows = [
        ("hello", "hello", false, Message, "\"Saved\""),
        ("ROOT/home/u1", "ROOT/home/u2", false, Message, "\"Deferred\""),
        ("ROOT/home/u1", "/", false, Message, "\"Deferred\""),
        ("ROOT/home/u1", "/etc", false, Message, "\"Deferred\""),
        ("ROOT/home/u1", "ROOT/home/u1/../u2", false, Message, "\"Deferred\""),
        (&his, &others, false, Message, "\"Deferred\""),
        (&his, roots, false, Message, "\"Deferred\""),
        ("ROOT/home/u1", "ROOT/elsewhere/u1", true, Message, elsewhere),
        ("\"extra\":{}", "\"extra\":{\"mail_path\":\"ROOT/elsewhere/u1\"}", false, Message, "\"Deferred\""),
        ("\"extra\":{}", "\"extra\":{\"mail_path\":\"ROOT/anybody\"}", true, Message, "\"Deferred\""),
        ("\"local\":\"u1\"", "\"local\":\"u1+../../u2/Maildir\"", false, Message, "\"INBOX\""),
        ("\"mailbox\":null", "\"mailbox\":\"../../anybody/x\"", false, Message, "\"Deferred\""),
        ("\"mailbox\":null", "\"mailbox\":\"Public/../../anybody\"", false, Message, "\"Deferred\""),
        ("\"mailbox\":null", "\"mailbox\":\"Public/info\"", false, Message, "\"Deferred\""),
        ("\"retry\":{\"name\":null", "\"retry\":{\"name\":\"../../x\"", false, Message, "\"Deferred\""),
        ("\"retry\":{\"name\":null", "\"retry\":{\"name\":\"ROOT/home/u1/x\"", false, Message, "\"Deferred\""),
        ("\"u1@x\":", "\"u2@x\":", false, Message, "\"Deferred\""),
        ("hello", "hello", false, Nothing, "\"Deferred\""),
        ("hello", "hello", false, Pipe, "\"Deferred\""),
        ("hello", "hello", false, Directory, "\"Deferred\""),
        ("hello", "hello", false, Two, "the end"),
        ("\"size\":18", "\"size\":19", false, Message, "\"Deferred\""),
        ("\"size\":18", "\"size\":1000000000000", false, Message, "\"Deferred\""),
        ("\"size\":18", "\"size\":900000", false, Large, "\"Deferred\""),
        ("\"Deliver\":{\"id\":", "\"Deliver\":{\"id\":-", false, Message, "the end"),
        ("{\"Message\":", "{\"Order\":", false, Message, "the end"),
        ("{\"Message\":{\"transaction\":", "{\"Message\":{\"transaction\":9", false, Message, "\"Deferred\""),
    ];
    let script = r#"
front, worker, uid, gid = map(int, sys.argv[1:5])
def hear(end, patience=20):
    if not select.select([end], [], [], patience)[0]:
        return "hangs", []
    try:
        text, rights, _, _ = end.recvmsg(1 << 17, 64)
    except ConnectionResetError:
        return "the end", []
    fds = array.array("i")
    for _, _, data in rights:
        fds.frombytes(data)
    return text.decode() or "the end", list(fds)
def say(end, text, fds=()):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    try:
        end.sendmsg([text.encode()], rights if fds else [])
    except BrokenPipeError:
        pass
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[5])
lines = client.makefile("rb")
def talk(line):
    client.sendall(line.encode() + b"\r\n")
    return lines.readline().decode()
lines.readline()
for line in ["MAIL FROM:<a@b>", "RCPT TO:<u1@x>"]:
    assert talk(line).startswith("250")
stop(worker)
its = taken(worker)
assert talk("DATA").startswith("354")
client.sendall(b"Subject: x\r\n\r\nhello\r\n.\r\n")
message, [letter] = hear(its)
deliver, _ = hear(its)
assert message.startswith('{"Message"') and deliver.startswith('{"Deliver"'), (message, deliver)
os.kill(worker, signal.SIGKILL)
stop(front)
orders = taken(front)
reader, writer = os.pipe()
folder = os.open("/", os.O_RDONLY)
large = os.memfd_create("large")
os.write(large, b"hello\n" * 100000)
beside = {"Message": [letter], "Nothing": [], "Pipe": [reader], "Directory": [folder], "Large": [large], "Two": [letter, letter]}
for row in json.loads(sys.argv[6]):
    who = {"uid": uid, "gid": uid, "groups": [uid, gid], "privileged": None}
    say(orders, json.dumps({"Fork": who}))
    forked, [fd] = hear(orders)
    its = socket.socket(fileno=fd)
    answer = ""
    if row["is_second"]:
        say(its, message, [letter])
        say(its, deliver)
        first, _ = hear(its)
        assert '"Saved"' in first, first
    before, after = row["before"], row["after"]
    assert before == after or before in message + deliver, (before, message, deliver)
    say(its, message.replace(before, after), beside[row["beside"]])
    say(its, deliver.replace(before, after))
    answer, _ = hear(its)
    print(answer, flush=True)
    its.close()
os.kill(front, signal.SIGCONT)
"#;
    let given = rows.iter().map(|(before, after, is_second, beside, _)| {
        let beside = match beside {
            Message => "Message",
            Nothing => "Nothing",
            Pipe => "Pipe",
            Directory => "Directory",
            Large => "Large",
            Two => "Two",
        };
        serde_json::json!({
            "before": at(before), "after": at(after), "is_second": is_second, "beside": beside
        })
    });
    let given = serde_json::Value::Array(given.collect()).to_string();
    let (front, worker) = (front(&server), worker(&server, uid).unwrap());
    let others = [
        "home/u2",
        "home/u3",
        "public",
        "shared",
        "elsewhere",
        "anybody",
        "run",
    ];
    let picture = || others.map(|it| support::tree(&site.scratch.path(it)));
    let before = picture();
    let mut python = Command::new("python3");
    python.args(["-c", &format!("{TAKEN}{script}")]);
    python.args([front.pid, worker.pid, uid, GROUP + 1].map(|it| it.to_string()));
    let output = python.arg(&server.socket).arg(given).output().unwrap();
    signal(front.pid, "CONT");
    let said = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let answers: Vec<&str> = said.lines().collect();
    assert_eq!(
        answers.len(),
        rows.len(),
        "{said} {errors} {}",
        server.log()
    );
    let wrong = rows.iter().zip(&answers);
    let wrong = wrong.filter(|((_, _, _, _, want), answer)| !answer.contains(want));
    let wrong: Vec<_> = wrong
        .map(|((before, after, ..), answer)| format!("{before} -> {after}: {answer}"))
        .collect();
    assert_eq!(wrong, Vec::<String>::new(), "{}", server.log());
    assert!(!server.log().contains("panicked"), "{}", server.log());
    if has_landlock {
        assert_eq!(picture(), before);
    }
    let home = fs::read_dir(site.home(1)).unwrap();
    let home: Vec<_> = home.map(|it| it.unwrap().file_name()).collect();
    assert_eq!(home, ["Maildir"]);
    for (path, text) in messages_below(&site.home(1)) {
        assert_eq!(facts(&path), (uid, uid, 0o600), "{}", path.display());
        assert!(text.ends_with(b"hello\n"), "{}", path.display());
    }
    // And the front goes on as it was.
    let replies = server.client().deliver(&["u1@x", "u2@x"], LETTER);
    assert!(
        replies.iter().all(|it| it.starts_with("250")),
        "{replies:?}"
    );
}
