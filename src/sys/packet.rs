//! Packets between processes of ours, with descriptors: a socket pair that keeps their borders.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType,
    recvmsg, sendmsg, shutdown, socketpair,
};

/// The largest packet, bytes: below the kernel's default for a socket's buffer.
pub const MAX_PACKET: usize = 128 * 1024;
/// What the kernel lets into one packet (`SCM_MAX_FD`). Where there is room for fewer the rest is cut off, and what has come stays
/// open, unknown to us.
const MAX_DESCRIPTORS: usize = 253;

/// Where packets come in. What no packet was long enough for is never touched, and costs no memory.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    length: usize,
}

impl Default for Buffer {
    fn default() -> Buffer {
        Buffer {
            bytes: vec![0; MAX_PACKET],
            length: 0,
        }
    }
}

impl Buffer {
    /// The last packet.
    pub fn packet(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// One end of the pair. It waits unless it was made [non-blocking](Packets::set_nonblocking).
#[derive(Debug)]
pub struct Packets(OwnedFd);

/// Two ends. When one is gone the other reads the end.
pub fn pair() -> io::Result<(Packets, Packets)> {
    let (here, there) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    Ok((Packets(here), Packets(there)))
}

impl From<OwnedFd> for Packets {
    fn from(end: OwnedFd) -> Packets {
        Packets(end)
    }
}

impl From<Packets> for OwnedFd {
    fn from(end: Packets) -> OwnedFd {
        end.0
    }
}

impl AsFd for Packets {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Packets {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Packets {
    /// For good, and for every copy of the descriptor: [`Packets::send`] and [`Packets::receive`] do not wait but fail with `WouldBlock`.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        fcntl(&self.0, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(())
    }

    /// The whole packet or an error.
    pub fn send(&self, bytes: &[u8], descriptor: Option<&dyn AsRawFd>) -> io::Result<()> {
        if bytes.len() > MAX_PACKET {
            let why = format!("a packet of {} bytes, and {MAX_PACKET} fit", bytes.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let descriptors: Vec<RawFd> = descriptor.iter().map(|it| it.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let control: &[ControlMessage] = match descriptors.is_empty() {
            true => &[],
            false => &rights,
        };
        let pieces = [IoSlice::new(bytes)];
        loop {
            match sendmsg::<()>(
                self.0.as_raw_fd(),
                &pieces,
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Err(nix::errno::Errno::EINTR) => {}
                sent => return Ok(sent.map(drop)?),
            }
        }
    }

    /// The next packet, into `buffer`. None: the other end is gone, or says no more.
    pub fn receive(&self, buffer: &mut Buffer) -> io::Result<Option<Option<OwnedFd>>> {
        buffer.length = 0;
        let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
        let (length, truncated, descriptor) = loop {
            let mut pieces = [IoSliceMut::new(&mut buffer.bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received =
                match recvmsg::<()>(self.0.as_raw_fd(), &mut pieces, Some(&mut space), flags) {
                    Err(nix::errno::Errno::EINTR) => continue,
                    received => received?,
                };
            let mut descriptors = Vec::new();
            for message in received.cmsgs()? {
                if let ControlMessageOwned::ScmRights(raw) = message {
                    // SAFETY: the kernel has just given us these, and nobody else knows them.
                    let owned = raw
                        .into_iter()
                        .map(|it| unsafe { OwnedFd::from_raw_fd(it) });
                    descriptors.extend(owned);
                }
            }
            let is_lost = received.flags.contains(MsgFlags::MSG_TRUNC) || descriptors.len() > 1;
            break (received.bytes, is_lost, descriptors.pop());
        };
        buffer.length = length;
        match (length, truncated) {
            (_, true) => Err(io::Error::other("a packet that does not fit")),
            (0, false) => Ok(None),
            (_, false) => Ok(Some(descriptor)),
        }
    }

    /// The other end reads the end behind what was sent; what it still sends can be had.
    pub fn say_no_more(&self) {
        // It may be gone already.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Write);
    }
}

/// Bytes in memory that nobody can change any more, for any number of readers.
pub fn sealed(bytes: &[u8]) -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create("message", flags)?);
    file.write_all(bytes)?;
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

/// The same open file, for reading only.
pub fn read_only(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn packets_with_descriptors() {
        let (here, there) = pair().unwrap();
        let mut buffer = Buffer::default();
        here.send(b"one", None).unwrap();
        here.send(b"two", Some(&sealed(b"letter").unwrap()))
            .unwrap();
        assert!(there.receive(&mut buffer).unwrap().unwrap().is_none());
        assert_eq!(buffer.packet(), b"one");
        let descriptor = there.receive(&mut buffer).unwrap().unwrap().unwrap();
        assert_eq!(buffer.packet(), b"two");
        let mut text = String::new();
        let mut file = File::from(descriptor);
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "letter");
        assert!(file.write_all(b"x").is_err());
        assert!(here.send(&vec![0; MAX_PACKET + 1], None).is_err());
        here.send(&vec![1; MAX_PACKET], None).unwrap();
        there.receive(&mut buffer).unwrap();
        assert_eq!(buffer.packet().len(), MAX_PACKET);
        here.say_no_more();
        assert!(there.receive(&mut buffer).unwrap().is_none());
        there.send(b"still", None).unwrap();
        here.receive(&mut buffer).unwrap();
        assert_eq!(buffer.packet(), b"still");
        drop(here);
        assert!(there.send(b"gone", None).is_err());
    }

    /// More than one is refused, and none of them stays open here.
    #[test]
    fn descriptors_that_nobody_wants() {
        for count in [2, 3, MAX_DESCRIPTORS] {
            let (here, there) = pair().unwrap();
            let (reader, writer) = nix::unistd::pipe().unwrap();
            let descriptors = vec![writer.as_raw_fd(); count];
            let rights = [ControlMessage::ScmRights(&descriptors)];
            let pieces = [IoSlice::new(b"x")];
            let (end, flags) = (here.as_raw_fd(), MsgFlags::empty());
            sendmsg::<()>(end, &pieces, &rights, flags, None).unwrap();
            drop(writer);
            assert!(there.receive(&mut Buffer::default()).is_err(), "{count}");
            let mut polled = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
            poll(&mut polled, PollTimeout::ZERO).unwrap();
            let is_closed = polled[0].revents() == Some(PollFlags::POLLHUP);
            assert!(is_closed, "{count}: {:?}", polled[0].revents());
        }
    }
}
