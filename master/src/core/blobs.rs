//! Records which logs of ended builds are in a blob store. The driver uploads them, and changes nothing before its record
//! is committed. Therefore a master that is killed at any moment leaves a ledger that is true: the next one uploads again
//! what is not recorded as uploaded, and removes from the disk what is.

use super::Core;
use super::event::Effect;
use super::record::Record;
use rouse_shared::BuildId;
use std::sync::Arc;

/// How far the upload of a build's logs is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Upload {
    /// Something of them may be in the store from now on. The files on the disk still count.
    Begun,
    /// All of them are in the store, and the store has confirmed their sizes. So many bytes.
    Complete(u64),
}

impl Core {
    pub(super) fn on_upload(&mut self, build: BuildId, store: Arc<str>, upload: Upload) {
        self.out.push(Effect::Save(Record::LogsUploaded(build, store, upload)));
        self.out.push(Effect::UploadRecorded(build));
    }
}
