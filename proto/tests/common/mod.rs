//! A filled image of every kind, and readers that read whatever there is.

#![allow(dead_code)] // each test file uses its part

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind as FieldKind, MessageDescriptor, Value};
use stasis_proto::images::{Framing, IMAGES, ImageType, Payload};
use stasis_proto::prost::Message;
use stasis_proto::show::Schema;
use stasis_proto::{ImageDir, ImageError, pb};

/// Run `$visit!(Type)` for the Rust type of the schema message `$name`.
#[macro_export]
macro_rules! for_message {
    ($name:expr, $visit:ident) => {
        match $name {
            "apparmor_entry" => $visit!(pb::ApparmorEntry),
            "autofs_entry" => $visit!(pb::AutofsEntry),
            "binfmt_misc_entry" => $visit!(pb::BinfmtMiscEntry),
            "bpfmap_data_entry" => $visit!(pb::BpfmapDataEntry),
            "bpfmap_file_entry" => $visit!(pb::BpfmapFileEntry),
            "cgroup_entry" => $visit!(pb::CgroupEntry),
            "core_entry" => $visit!(pb::CoreEntry),
            "cpuinfo_entry" => $visit!(pb::CpuinfoEntry),
            "creds_entry" => $visit!(pb::CredsEntry),
            "eventfd_file_entry" => $visit!(pb::EventfdFileEntry),
            "eventpoll_file_entry" => $visit!(pb::EventpollFileEntry),
            "eventpoll_tfd_entry" => $visit!(pb::EventpollTfdEntry),
            "ext_file_entry" => $visit!(pb::ExtFileEntry),
            "fanotify_file_entry" => $visit!(pb::FanotifyFileEntry),
            "fanotify_mark_entry" => $visit!(pb::FanotifyMarkEntry),
            "fdinfo_entry" => $visit!(pb::FdinfoEntry),
            "fifo_entry" => $visit!(pb::FifoEntry),
            "file_entry" => $visit!(pb::FileEntry),
            "file_lock_entry" => $visit!(pb::FileLockEntry),
            "fs_entry" => $visit!(pb::FsEntry),
            "ghost_chunk_entry" => $visit!(pb::GhostChunkEntry),
            "ghost_file_entry" => $visit!(pb::GhostFileEntry),
            "inet_sk_entry" => $visit!(pb::InetSkEntry),
            "inotify_file_entry" => $visit!(pb::InotifyFileEntry),
            "inotify_wd_entry" => $visit!(pb::InotifyWdEntry),
            "inventory_entry" => $visit!(pb::InventoryEntry),
            "ipc_msg" => $visit!(pb::IpcMsg),
            "ipc_msg_entry" => $visit!(pb::IpcMsgEntry),
            "ipc_sem_entry" => $visit!(pb::IpcSemEntry),
            "ipc_shm_entry" => $visit!(pb::IpcShmEntry),
            "ipc_var_entry" => $visit!(pb::IpcVarEntry),
            "irmap_cache_entry" => $visit!(pb::IrmapCacheEntry),
            "itimer_entry" => $visit!(pb::ItimerEntry),
            "memfd_inode_entry" => $visit!(pb::MemfdInodeEntry),
            "mm_entry" => $visit!(pb::MmEntry),
            "mnt_entry" => $visit!(pb::MntEntry),
            "net_device_entry" => $visit!(pb::NetDeviceEntry),
            "netlink_sk_entry" => $visit!(pb::NetlinkSkEntry),
            "netns_entry" => $visit!(pb::NetnsEntry),
            "ns_file_entry" => $visit!(pb::NsFileEntry),
            "packet_sock_entry" => $visit!(pb::PacketSockEntry),
            "pagemap_entry" => $visit!(pb::PagemapEntry),
            "pagemap_head" => $visit!(pb::PagemapHead),
            "pidfd_entry" => $visit!(pb::PidfdEntry),
            "stasis_marks_entry" => $visit!(pb::StasisMarksEntry),
            "stasis_marks_head" => $visit!(pb::StasisMarksHead),
            "stasis_mqueue_entry" => $visit!(pb::StasisMqueueEntry),
            "stasis_namespace_entry" => $visit!(pb::StasisNamespaceEntry),
            "stasis_packed_entry" => $visit!(pb::StasisPackedEntry),
            "stasis_plugin_entry" => $visit!(pb::StasisPluginEntry),
            "stasis_tracking_entry" => $visit!(pb::StasisTrackingEntry),
            "pidns_entry" => $visit!(pb::PidnsEntry),
            "pipe_data_entry" => $visit!(pb::PipeDataEntry),
            "pipe_entry" => $visit!(pb::PipeEntry),
            "posix_timer_entry" => $visit!(pb::PosixTimerEntry),
            "pstree_entry" => $visit!(pb::PstreeEntry),
            "reg_file_entry" => $visit!(pb::RegFileEntry),
            "remap_file_path_entry" => $visit!(pb::RemapFilePathEntry),
            "rlimit_entry" => $visit!(pb::RlimitEntry),
            "sa_entry" => $visit!(pb::SaEntry),
            "seccomp_entry" => $visit!(pb::SeccompEntry),
            "siginfo_entry" => $visit!(pb::SiginfoEntry),
            "signalfd_entry" => $visit!(pb::SignalfdEntry),
            "sk_packet_entry" => $visit!(pb::SkPacketEntry),
            "stats_entry" => $visit!(pb::StatsEntry),
            "task_kobj_ids_entry" => $visit!(pb::TaskKobjIdsEntry),
            "tcp_stream_entry" => $visit!(pb::TcpStreamEntry),
            "timens_entry" => $visit!(pb::TimensEntry),
            "timerfd_entry" => $visit!(pb::TimerfdEntry),
            "tty_data_entry" => $visit!(pb::TtyDataEntry),
            "tty_file_entry" => $visit!(pb::TtyFileEntry),
            "tty_info_entry" => $visit!(pb::TtyInfoEntry),
            "tunfile_entry" => $visit!(pb::TunfileEntry),
            "unix_sk_entry" => $visit!(pb::UnixSkEntry),
            "userns_entry" => $visit!(pb::UsernsEntry),
            "utsns_entry" => $visit!(pb::UtsnsEntry),
            "vma_entry" => $visit!(pb::VmaEntry),
            other => panic!("no Rust type is listed for {other}: add it to for_message"),
        }
    };
}

/// The rows that have records.
pub fn framed() -> impl Iterator<Item = &'static ImageType> {
    IMAGES.iter().filter(|row| row.framing != Framing::Raw)
}

/// A message with every field set; `seed` varies the values. Recursion ends after a few levels.
pub fn filled(descriptor: MessageDescriptor, seed: u32, depth: u32) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        if depth == 0 && matches!(field.kind(), FieldKind::Message(_)) && !is_required(&field) {
            continue;
        }
        let value = |n: u32| value(&field, seed + n + field.number(), depth);
        let value = match field.is_list() {
            true => Value::List(vec![value(0), value(1)]),
            false => value(0),
        };
        message.set_field(&field, value);
    }
    message
}

fn is_required(field: &FieldDescriptor) -> bool {
    field.cardinality() == prost_reflect::Cardinality::Required
}

fn value(field: &FieldDescriptor, n: u32, depth: u32) -> Value {
    match field.kind() {
        FieldKind::Bool => Value::Bool(n % 2 == 1),
        FieldKind::Int32 | FieldKind::Sint32 => Value::I32(-(n as i32)),
        FieldKind::Int64 | FieldKind::Sint64 => Value::I64(-(i64::from(n) << 33)),
        FieldKind::Uint32 => Value::U32(n),
        FieldKind::Uint64 | FieldKind::Fixed64 => Value::U64(u64::from(n)),
        FieldKind::String => Value::String(format!("text {n}")),
        FieldKind::Bytes => Value::Bytes(vec![n as u8; 3].into()),
        FieldKind::Enum(of) => Value::EnumNumber(of.values().last().unwrap().number()),
        FieldKind::Message(of) => Value::Message(filled(of, n, depth.saturating_sub(1))),
        other => panic!("the format has no fields of type {other:?}"),
    }
}

/// A filled message of the schema, encoded.
pub fn encoded(schema: &Schema, name: &str, seed: u32) -> DynamicMessage {
    filled(schema.pool().get_message_by_name(name).unwrap(), seed, 3)
}

/// Write an image of `row` with filled records and fitting payload.
/// Returns its name, and the sizes at which cutting it leaves a whole image.
pub fn write_sample(schema: &Schema, dir: &ImageDir, row: &ImageType) -> (String, Vec<u64>) {
    let name = row.file_name(77);
    let mut writer = dir.writer(&name).unwrap();
    let mut size = if row.framing == Framing::Own { 4 } else { 8 };
    let mut whole = vec![size];
    for at in 0..3 {
        let name = match (row.payload, row.then) {
            (Payload::None, Some(then)) if at > 0 => then,
            _ => row.message.unwrap(),
        };
        let mut message = encoded(schema, name, at * 5);
        let mut payload = Vec::new();
        match row.payload {
            Payload::None => {}
            Payload::Bytes(fields) => {
                for field in fields {
                    let len = message.get_field_by_name(field).unwrap().as_u32().unwrap();
                    payload.resize(payload.len() + len as usize, 0xee);
                }
            }
            Payload::Ghost => {
                let inner = encoded(schema, row.then.unwrap(), at);
                let len = inner.get_field_by_name("len").unwrap().as_u64().unwrap();
                push_record(&mut payload, &inner.encode_to_vec());
                payload.resize(payload.len() + len as usize, 0xee);
                message.set_field_by_name("chunks", Value::Bool(true));
            }
            Payload::IpcShm => {
                message.set_field_by_name("in_pagemaps", Value::Bool(false));
                let size = message.get_field_by_name("size").unwrap().as_u64().unwrap();
                payload.resize(size.next_multiple_of(4) as usize, 0xee);
            }
            Payload::IpcSem => {
                let nsems = message
                    .get_field_by_name("nsems")
                    .unwrap()
                    .as_u32()
                    .unwrap();
                payload.resize((nsems * 2).next_multiple_of(8) as usize, 0xee);
            }
            Payload::IpcMsg => {
                let inner = encoded(schema, row.then.unwrap(), at);
                let len = inner.get_field_by_name("msize").unwrap().as_u32().unwrap();
                let qnum = message.get_field_by_name("qnum").unwrap().as_u32().unwrap();
                for _ in 0..qnum {
                    push_record(&mut payload, &inner.encode_to_vec());
                    let padded = (len as usize).next_multiple_of(8);
                    payload.resize(payload.len() + padded, 0xee);
                }
            }
        }
        let bytes = message.encode_to_vec();
        macro_rules! write {
            ($type:ty) => {
                writer
                    .write(&<$type>::decode(bytes.as_slice()).unwrap())
                    .unwrap()
            };
        }
        for_message!(name, write);
        writer.raw(&payload).unwrap();
        if row.payload == Payload::Ghost {
            // Cutting behind the head leaves a file of no chunks.
            whole.push(size + 4 + bytes.len() as u64);
        }
        size += 4 + bytes.len() as u64 + payload.len() as u64;
        whole.push(size);
        if row.payload == Payload::Ghost {
            break; // a ghost file has one head
        }
    }
    writer.finish().unwrap();
    (name, whole)
}

fn push_record(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Read the image with everything the crate has; the result is that of the generic reader.
pub fn read_everything(
    schema: &Schema,
    dir: &ImageDir,
    row: &ImageType,
    name: &str,
) -> Result<serde_json::Value, ImageError> {
    for message in row.message.iter().chain(&row.then) {
        macro_rules! read {
            ($type:ty) => {{
                let _ = dir.read_one::<$type>(name);
                let _ = dir.read_all::<$type>(name);
                if let Ok(mut reader) = dir.reader(name) {
                    while let Ok(Some(_)) = reader.read::<$type>() {
                        let _ = reader.skip(3);
                    }
                    let left = reader.remaining();
                    let _ = reader.copy_payload(left / 2, &mut std::io::sink());
                    let _ = reader.rest();
                    let _ = reader.finish();
                }
            }};
        }
        for_message!(*message, read);
    }
    if let Ok(records) = dir.records(name) {
        records.for_each(drop);
    }
    schema.show(dir, name)
}
