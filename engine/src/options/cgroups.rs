//! What the caller says of control groups.
use std::path::PathBuf;

/// How cgroups are treated (`--manage-cgroups`, RPC `manage_cgroups_mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupMode {
    /// Nothing is made or set; tasks stay where their restorer is.
    Ignore,
    /// No cgroup is made: those that are there are used, without properties.
    CgNone,
    /// Properties are set on groups that are there already.
    Props,
    /// Groups are made, properties set where the group was made (the meaning of `--manage-cgroups` alone, and
    /// the rule when nothing is said).
    #[default]
    Soft,
    /// Groups are made if they are missing; all properties are set.
    Full,
    /// As full, but groups must not exist before.
    Strict,
}

/// Control groups.
#[derive(Debug, Clone, Default)]
pub struct CgroupOptions {
    /// The mode.
    pub mode: CgroupMode,
    /// `--cgroup-root [CTRL:]PATH`, RPC `cg_root`: controllers ("" or none: the unified tree, or all) and where the tree goes.
    pub roots: Vec<(Option<String>, String)>,
    /// `--cgroup-props`: text of properties.
    pub props: Option<String>,
    /// `--cgroup-props-file`.
    pub props_file: Option<PathBuf>,
    /// `--cgroup-dump-controller`: only these.
    pub controllers: Vec<String>,
    /// `--cgroup-yard`: where hierarchies are mounted.
    pub yard: Option<PathBuf>,
    /// `--freeze-cgroup`: freeze this group before seizing.
    pub freeze: Option<PathBuf>,
}
