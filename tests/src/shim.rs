//! A client of the shim's Task API, and a shim started as containerd starts it.

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{EnumOrUnknown, Message};
use containerd_shim_protos::ttrpc::{self, proto};
use serde_json::Value;

use crate::bundle::Bundle;
use crate::case::{Case, PATIENCE};
use crate::command::{Output, run};
use crate::events::Sink;
use crate::stdio::Fifos;
use crate::{Context, Result};

/// The name containerd 1.6 and 1.7 call the service by. Its messages are those of v3.
const SERVICE: &str = "containerd.task.v2.Task";

/// The type containerd gives the JSON of a process in an Exec request.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// A shim's refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status code's name, such as `NOT_FOUND`.
    pub code: String,
    /// What the shim says.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Refusal {}

impl From<ttrpc::Error> for Refusal {
    fn from(error: ttrpc::Error) -> Refusal {
        match error {
            ttrpc::Error::RpcStatus(status) => Refusal {
                code: status
                    .code
                    .enum_value()
                    .map_or_else(|code| code.to_string(), |code| format!("{code:?}")),
                message: status.message,
            },
            other => Refusal { code: "TRANSPORT".to_owned(), message: other.to_string() },
        }
    }
}

/// What a call comes to.
pub type Answer<T> = std::result::Result<T, Refusal>;

/// One connection to a shim, and the container it is asked about.
pub struct TaskClient {
    client: ttrpc::Client,
    /// The container's id, filled into every request.
    pub id: String,
}

impl TaskClient {
    /// Connects to `address`, as the shim's `start` action prints it.
    pub fn connect(address: &str, id: &str) -> Result<TaskClient> {
        let client = ttrpc::Client::connect(address).context(address)?;
        Ok(TaskClient { client, id: id.to_owned() })
    }

    /// The same shim asked about another id.
    pub fn about(&self, id: &str) -> TaskClient {
        TaskClient { client: self.client.clone(), id: id.to_owned() }
    }

    /// One call, answered or given up within [`PATIENCE`].
    pub fn call<R: Message>(&self, method: &str, request: &impl Message) -> Answer<R> {
        let undecoded = |error: containerd_shim_protos::protobuf::Error| Refusal {
            code: "PROTOBUF".to_owned(),
            message: error.to_string(),
        };
        let mut frame = proto::Request::new();
        frame.set_service(SERVICE.to_owned());
        frame.set_method(method.to_owned());
        // Linux never runs for the 292 years at which this is cut off.
        frame.set_timeout_nano(i64::try_from(PATIENCE.as_nanos()).unwrap_or(i64::MAX));
        frame.set_payload(request.write_to_bytes().map_err(undecoded)?);
        let response = self.client.request(frame)?;
        R::parse_from_bytes(&response.payload).map_err(undecoded)
    }

    /// `State` of the container (empty exec id) or of one of its execs.
    pub fn state(&self, exec: &str) -> Answer<api::StateResponse> {
        let request =
            api::StateRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        self.call("State", &request)
    }

    /// `Start`; answers the pid.
    pub fn start(&self, exec: &str) -> Answer<u32> {
        let request =
            api::StartRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        self.call::<api::StartResponse>("Start", &request).map(|response| response.pid)
    }

    /// `Kill` with a signal's number.
    pub fn kill(&self, exec: &str, signal: u32) -> Answer<()> {
        let request =
            api::KillRequest { id: self.id.clone(), exec_id: exec.to_owned(), signal, ..Default::default() };
        self.call::<api::Empty>("Kill", &request).map(|_| ())
    }

    /// `Wait`; answers the exit status.
    pub fn wait(&self, exec: &str) -> Answer<u32> {
        let request =
            api::WaitRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        self.call::<api::WaitResponse>("Wait", &request).map(|response| response.exit_status)
    }

    /// `Delete`; answers the exit status.
    pub fn delete(&self, exec: &str) -> Answer<u32> {
        let request =
            api::DeleteRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        self.call::<api::DeleteResponse>("Delete", &request).map(|response| response.exit_status)
    }

    /// `Exec` of the OCI process `process`, its streams at `stdio` or nowhere.
    pub fn exec(&self, exec: &str, process: &Value, stdio: Option<&Fifos>) -> Answer<()> {
        let spec = Any {
            type_url: PROCESS_TYPE.to_owned(),
            value: process.to_string().into_bytes(),
            ..Default::default()
        };
        let mut request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            terminal: process["terminal"].as_bool().unwrap_or(false),
            spec: Some(spec).into(),
            ..Default::default()
        };
        if let Some(stdio) = stdio {
            request.stdin = text(&stdio.stdin);
            request.stdout = text(&stdio.stdout);
            request.stderr = if request.terminal { String::new() } else { text(&stdio.stderr) };
        }
        self.call::<api::Empty>("Exec", &request).map(|_| ())
    }

    /// `CloseIO` of the standard input.
    pub fn close_stdin(&self, exec: &str) -> Answer<()> {
        let request = api::CloseIORequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            stdin: true,
            ..Default::default()
        };
        self.call::<api::Empty>("CloseIO", &request).map(|_| ())
    }

    /// `ResizePty` to so many columns and rows.
    pub fn resize(&self, exec: &str, width: u32, height: u32) -> Answer<()> {
        let request = api::ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            width,
            height,
            ..Default::default()
        };
        self.call::<api::Empty>("ResizePty", &request).map(|_| ())
    }

    /// A call that takes the container's id alone: `Pause`, `Resume`, `Pids`, `Stats`, `Connect`.
    pub fn plain<R: Message>(&self, method: &str) -> Answer<R> {
        // All of these requests have the id as their first field and nothing else that matters.
        self.call(method, &api::PidsRequest { id: self.id.clone(), ..Default::default() })
    }

    /// `Shutdown`: the shim ends if it has no container left.
    pub fn shutdown(&self) -> Answer<()> {
        self.call::<api::Empty>(
            "Shutdown",
            &api::ShutdownRequest { id: self.id.clone(), ..Default::default() },
        )
        .map(|_| ())
    }

    /// The end of the shim, whatever containers it has.
    fn shutdown_now(&self) -> Answer<()> {
        let request = api::ShutdownRequest { id: self.id.clone(), now: true, ..Default::default() };
        self.call::<api::Empty>("Shutdown", &request).map(|_| ())
    }

    /// One exec from `Exec` to `Delete` with its output: (status, stdout, stderr).
    pub fn exec_to_end(&self, dir: &Path, exec: &str, process: &Value) -> Result<(u32, String, String)> {
        let stdio = Fifos::new(dir, exec)?;
        self.exec(exec, process, Some(&stdio)).context("Exec")?;
        self.start(exec).context("Start")?;
        let status = self.wait(exec).context("Wait")?;
        let (out, err) = if process["terminal"] == true {
            (stdio.output(PATIENCE)?, String::new())
        } else {
            stdio.collect(PATIENCE)?
        };
        self.delete(exec).context("Delete")?;
        Ok((status, out, err))
    }
}

/// The status of a `State` answer by its name, such as `RUNNING`.
pub fn status_name(state: &api::StateResponse) -> String {
    let status: EnumOrUnknown<_> = state.status;
    status.enum_value().map_or_else(|number| number.to_string(), |status| format!("{status:?}"))
}

/// A shim without containerd: started, asked and stopped by the case itself.
pub struct Shim {
    /// The connection to it.
    pub task: TaskClient,
    /// The bundle it was started in.
    pub bundle: Bundle,
    /// The events it sends.
    pub events: Sink,
    /// How the `start` action went.
    pub started: Output,
    /// What it prints: the address of its socket.
    pub address: String,
    actions: Actions,
}

/// How this shim's binary is called.
struct Actions {
    program: std::path::PathBuf,
    flags: Vec<String>,
    dir: std::path::PathBuf,
    environment: Vec<(String, String)>,
}

impl Actions {
    fn run(&self, action: &str) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command.args(&self.flags).arg(action).current_dir(&self.dir).envs(self.environment.iter().cloned());
        run(&mut command, Duration::from_secs(30))
    }
}

impl Shim {
    /// Runs the `start` action in `bundle` and connects to the address it prints.
    pub fn start(case: &Case<'_>, id: &str, bundle: Bundle) -> Result<Shim> {
        let dir = bundle.dir.clone();
        let events = Sink::listen(case.dir().join(format!("{id}.events")))?;
        let socket = text(&case.world.containerd().socket());
        let publish = text(&case.world.assets().containerd);
        let flags =
            ["-namespace", &case.namespace, "-address", &socket, "-publish-binary", &publish, "-id", id];
        let actions = Actions {
            program: case.world.assets().shim.clone(),
            flags: flags.map(str::to_owned).to_vec(),
            dir,
            environment: vec![
                ("TTRPC_ADDRESS".to_owned(), text(&events.socket)),
                ("KATA_CONF_FILE".to_owned(), text(&case.world.dir().join("configuration.toml"))),
            ],
        };
        let started = actions.run("start")?.exits(0)?;
        let address = started.out().trim().to_owned();
        let task = TaskClient::connect(&address, id)?;
        Ok(Shim { task, bundle, events, started, address, actions })
    }

    /// `Create` of the container whose config.json is in the bundle; answers the pid.
    pub fn create(&self, stdio: Option<&Fifos>) -> Answer<u32> {
        self.task
            .call::<api::CreateTaskResponse>("Create", &self.create_request(stdio))
            .map(|response| response.pid)
    }

    /// The request that [`Shim::create`] sends.
    pub fn create_request(&self, stdio: Option<&Fifos>) -> api::CreateTaskRequest {
        let mut request = api::CreateTaskRequest {
            id: self.task.id.clone(),
            bundle: text(&self.bundle.dir),
            rootfs: vec![self.bundle.rootfs()],
            ..Default::default()
        };
        if let Some(stdio) = stdio {
            request.stdin = text(&stdio.stdin);
            request.stdout = text(&stdio.stdout);
            request.stderr = text(&stdio.stderr);
        }
        request
    }

    /// Another connection to the same shim.
    pub fn connect(&self) -> Result<TaskClient> {
        TaskClient::connect(&self.address, &self.task.id)
    }

    /// The `delete` action, which containerd runs when a shim is gone.
    pub fn delete_action(&self) -> Result<Output> {
        self.actions.run("delete")
    }

    /// What containerd does with a task that has exited: `Delete`, `Shutdown`, the `delete` action.
    pub fn end(self) -> Result<()> {
        self.task.delete("").context("Delete")?;
        // The shim may be gone before its answer is sent, which is what was asked for.
        let _ = self.task.shutdown();
        self.delete_action().map(|_| ())
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // For a case that failed half way. After `end` all of it is refused, and nothing is there to unmount.
        let _ = self.task.kill("", 9);
        if self.task.wait("").is_ok() {
            let _ = self.task.delete("");
        }
        let _ = self.task.shutdown_now();
        let _ = self.delete_action();
        let _ = nix::mount::umount2(&self.bundle.dir.join("rootfs"), nix::mount::MntFlags::MNT_DETACH);
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
