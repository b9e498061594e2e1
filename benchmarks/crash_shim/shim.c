/* Kill a process at a chosen system call on files below one folder, or log all such calls with their data.
 *
 * Preload it: LD_PRELOAD=shim.so. It sleeps until `crash_begin` is called (a program that is executed under
 * it calls that by itself) and finds in the environment
 *   CRASH_FOLDER   absolute path without links; calls on anything below it count
 *   CRASH_CONTROL  file of one `struct control`, shared by all processes of a job
 *   CRASH_AT       "process:phase:call:when:who", the system call to die at; unset: none
 *                    process  "r", rank r itself, or "rh1", the first process that rank r started, ...
 *                    phase    counted by `crash_phase`, from 0
 *                    call     number of the call in that phase, from 0
 *                    when     before | after | middle (of a write: half of its bytes reach the file)
 *                    who      one | all (every process of the job that has registered)
 *   CRASH_TRACE    file to which a record of every call is appended; unset: none
 *
 * A call counts if it can change what is on the disk: read-only opens, and closes after them, do not.
 * Linux on 64 bits only: the calls are made with syscall(2), so nothing is looked up while it is intercepted.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_PROCESSES 64
#define MAX_PHASES 16
#define MAX_FILES 4096

enum when { BEFORE, AFTER, MIDDLE };
/* Letters of the operations in the trace; power_loss.py reads them. */
enum operation {
  OPEN = 'o',     /* an open for writing; `size` is 1 if it created the file, `offset` 1 if it emptied it */
  WRITE = 'w',    /* `offset`, data */
  SIZE = 't',     /* ftruncate: `size` */
  ALLOCATE = 'a', /* fallocate: the file has at least `size` bytes from now on */
  SYNC = 's',     /* an fsync begins */
  SYNCED = 'S',   /* and has ended */
  RENAME = 'r',
  MAKE = 'm',
  UNLINK = 'u',
  REMOVE = 'd',
  LINK = 'l',
  CLOSE = 'c'
};

struct process {
  int32_t pid, rank, role; /* role: 0 the rank itself, 1, 2, ... what it started */
  int32_t phase;           /* phase that `calls` was last counted in */
  int32_t calls[MAX_PHASES];
};
struct control {
  int32_t num_processes, killed;
  int32_t phase_of_rank[MAX_PROCESSES];
  struct process processes[MAX_PROCESSES];
};
struct record {
  int64_t offset, size, inode;
  int32_t pid, rank, role, operation;
  uint32_t path_length, other_length, data_length, padding;
};

static char folder[PATH_MAX];
static size_t folder_length;
static struct control* control;
static struct process* self;
static int trace = -1, rank_of_job;
static struct {
  int set, rank, role, phase, call, all;
  enum when when;
} target;
static struct {
  char* path;
  int writable;
} files[MAX_FILES];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void stop(const char* message) {
  dprintf(2, "crash shim: %s: %s\n", message, strerror(errno));
  _exit(70);
}

void crash_begin(void) {
  const char* name = getenv("CRASH_FOLDER");
  if (!name || control) return;
  snprintf(folder, sizeof folder, "%s/", name);
  folder_length = strlen(folder);
  const char* rank = getenv("OMPI_COMM_WORLD_RANK");
  if (!rank) rank = getenv("PMI_RANK");
  rank_of_job = rank ? atoi(rank) : 0;
  const char* at = getenv("CRASH_AT");
  if (at) {
    char process[16], when[16], who[16];
    if (sscanf(at, "%15[^:]:%d:%d:%15[^:]:%15s", process, &target.phase, &target.call, when, who) != 5)
      stop("CRASH_AT");
    char* end;
    target.rank = (int)strtol(process, &end, 10);
    target.role = *end == 'h' ? atoi(end + 1) : 0;
    target.when = when[0] == 'b' ? BEFORE : when[0] == 'a' ? AFTER : MIDDLE;
    target.all = who[0] == 'a';
    target.set = 1;
  }
  const char* trace_name = getenv("CRASH_TRACE");
  if (trace_name) {
    trace = (int)syscall(SYS_openat, AT_FDCWD, trace_name, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (trace < 0) stop(trace_name);
  }
  const char* control_name = getenv("CRASH_CONTROL");
  int descriptor = (int)syscall(SYS_openat, AT_FDCWD, control_name ? control_name : "", O_RDWR | O_CLOEXEC);
  if (descriptor < 0) stop("CRASH_CONTROL");
  control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (control == MAP_FAILED) stop("CRASH_CONTROL");
  syscall(SYS_close, descriptor);
}

__attribute__((constructor)) static void begin_if_executed(void) { crash_begin(); }

/* Begin the next phase of this rank; calls are counted from 0 again, in the processes it started too. */
void crash_phase(int phase) {
  if (control) control->phase_of_rank[rank_of_job] = phase;
}

static void register_process(void) {
  int index = __atomic_fetch_add(&control->num_processes, 1, __ATOMIC_SEQ_CST);
  if (index >= MAX_PROCESSES) stop("too many processes");
  int role = 0;
  for (int i = 0; i < index; ++i) role += control->processes[i].rank == rank_of_job && control->processes[i].pid;
  self = &control->processes[index];
  self->rank = rank_of_job, self->role = role;
  __atomic_store_n(&self->pid, getpid(), __ATOMIC_SEQ_CST);
}

/* Ranks register before they start others, so that role 0 is theirs. */
void crash_register(void) {
  if (control && (!self || self->pid != getpid())) register_process();
}

static void die(void) {
  __atomic_store_n(&control->killed, 1, __ATOMIC_SEQ_CST);
  if (target.all)
    for (int i = 0; i < control->num_processes; ++i)
      if (control->processes[i].pid && control->processes[i].pid != getpid()) kill(control->processes[i].pid, SIGKILL);
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

/* Whether a path is the folder or below it. */
static int below(const char* path) {
  return control && path && !strncmp(path, folder, folder_length - 1) &&
         (path[folder_length - 1] == '/' || path[folder_length - 1] == 0);
}

/* The absolute path of a name in a folder given as in openat(2), without looking at links. */
static const char* absolute(int at, const char* name, char* out) {
  int saved = errno;
  if (!name || name[0] == '/') return name;
  char place[64], base[PATH_MAX];
  snprintf(place, sizeof place, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
  ssize_t length = readlink(place, base, sizeof base - 1);
  base[length < 0 ? 0 : length] = 0;
  if (snprintf(out, PATH_MAX, "%s/%s", base, name) >= PATH_MAX) out[0] = 0;
  errno = saved;
  return out;
}

/* Count a call; return whether this process is to die at it. */
static int is_due(void) {
  crash_register();
  int phase = control->phase_of_rank[rank_of_job];
  if (phase < 0 || phase >= MAX_PHASES) return 0;
  int call = __atomic_fetch_add(&self->calls[phase], 1, __ATOMIC_SEQ_CST);
  self->phase = phase;
  return target.set && target.rank == self->rank && target.role == self->role && target.phase == phase &&
         target.call == call;
}

static void log_call(int operation, int descriptor, const char* path, const char* other, int64_t offset, int64_t size,
                     const struct iovec* data, int num_data, int64_t data_length) {
  if (trace < 0) return;
  int saved = errno;
  struct stat status = {0};
  if (descriptor >= 0)
    fstat(descriptor, &status);
  else
    lstat(other ? other : path, &status);
  struct record record = {.offset = offset,
                          .size = size,
                          .inode = (int64_t)status.st_ino,
                          .pid = getpid(),
                          .rank = rank_of_job,
                          .role = self ? self->role : 0,
                          .operation = operation};
  record.path_length = (uint32_t)strlen(path);
  record.other_length = other ? (uint32_t)strlen(other) : 0;
  record.data_length = (uint32_t)data_length;
  size_t total = sizeof record + record.path_length + record.other_length + record.data_length;
  char *buffer = malloc(total), *end = buffer;
  if (!buffer) stop("no memory");
  end = mempcpy(end, &record, sizeof record);
  end = mempcpy(end, path, record.path_length);
  end = mempcpy(end, other ? other : "", record.other_length);
  for (int i = 0; i < num_data && data_length > 0; ++i) {
    size_t piece = data[i].iov_len < (size_t)data_length ? data[i].iov_len : (size_t)data_length;
    end = mempcpy(end, data[i].iov_base, piece);
    data_length -= (int64_t)piece;
  }
  /* One call with O_APPEND: records of several processes do not mix. */
  if (syscall(SYS_write, trace, buffer, total) != (long)total) stop("CRASH_TRACE");
  free(buffer);
  errno = saved;
}

static const char* tracked(int descriptor) {
  return control && descriptor >= 0 && descriptor < MAX_FILES ? files[descriptor].path : NULL;
}

/* ---- calls on names ---- */

/* Make a call that changes names, die around it if this is the one, and log it if it worked. */
#define NAME_CALL(counts, call, operation, path, other)                               \
  do {                                                                                \
    int due = (counts) && is_due();                                                   \
    if (due && target.when != AFTER) die();                                           \
    long result = (call);                                                             \
    if (due) die();                                                                   \
    if ((counts) && result == 0) log_call(operation, -1, path, other, 0, 0, 0, 0, 0); \
    return (int)result;                                                               \
  } while (0)

int renameat2(int from_at, const char* from, int to_at, const char* to, unsigned flags) {
  char from_buffer[PATH_MAX], to_buffer[PATH_MAX];
  const char *from_path = absolute(from_at, from, from_buffer), *to_path = absolute(to_at, to, to_buffer);
  NAME_CALL(below(from_path) || below(to_path), syscall(SYS_renameat2, from_at, from, to_at, to, flags), RENAME,
            from_path, to_path);
}
int renameat(int from_at, const char* from, int to_at, const char* to) {
  return renameat2(from_at, from, to_at, to, 0);
}
int rename(const char* from, const char* to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int linkat(int from_at, const char* from, int to_at, const char* to, int flags) {
  char from_buffer[PATH_MAX], to_buffer[PATH_MAX];
  const char *from_path = absolute(from_at, from, from_buffer), *to_path = absolute(to_at, to, to_buffer);
  NAME_CALL(below(to_path), syscall(SYS_linkat, from_at, from, to_at, to, flags), LINK, from_path, to_path);
}
int link(const char* from, const char* to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int mkdirat(int at, const char* name, mode_t mode) {
  char buffer[PATH_MAX];
  const char* path = absolute(at, name, buffer);
  NAME_CALL(below(path), syscall(SYS_mkdirat, at, name, mode), MAKE, path, NULL);
}
int mkdir(const char* name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

int unlinkat(int at, const char* name, int flags) {
  char buffer[PATH_MAX];
  const char* path = absolute(at, name, buffer);
  NAME_CALL(below(path), syscall(SYS_unlinkat, at, name, flags), flags & AT_REMOVEDIR ? REMOVE : UNLINK, path, NULL);
}
int unlink(const char* name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char* name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int remove(const char* name) {
  int result = unlinkat(AT_FDCWD, name, 0);
  return result && errno == EISDIR ? rmdir(name) : result;
}

/* ---- opening and closing ---- */

static int open_at(int at, const char* name, int flags, mode_t mode) {
  char buffer[PATH_MAX];
  const char* path = control ? absolute(at, name, buffer) : NULL;
  if (!below(path)) return (int)syscall(SYS_openat, at, name, flags, mode);
  int writable = (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT);
  int existed = syscall(SYS_faccessat, AT_FDCWD, path, F_OK) == 0;
  int due = writable && is_due();
  if (due && target.when != AFTER) die();
  int descriptor = (int)syscall(SYS_openat, at, name, flags, mode);
  if (due) die();
  if (descriptor >= MAX_FILES) stop("too many open files");
  if (descriptor < 0) return descriptor;
  pthread_mutex_lock(&mutex);
  free(files[descriptor].path);
  files[descriptor].path = strdup(path);
  files[descriptor].writable = writable;
  pthread_mutex_unlock(&mutex);
  if (writable) log_call(OPEN, descriptor, path, NULL, (flags & O_TRUNC) != 0, !existed, 0, 0, 0);
  return descriptor;
}

#define OPEN_FUNCTION(name, parameters, arguments)                          \
  int name parameters {                                                     \
    va_list list;                                                           \
    va_start(list, flags);                                                  \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; \
    va_end(list);                                                           \
    return open_at arguments;                                               \
  }
OPEN_FUNCTION(open, (const char* name, int flags, ...), (AT_FDCWD, name, flags, mode))
OPEN_FUNCTION(open64, (const char* name, int flags, ...), (AT_FDCWD, name, flags, mode))
OPEN_FUNCTION(openat, (int at, const char* name, int flags, ...), (at, name, flags, mode))
OPEN_FUNCTION(openat64, (int at, const char* name, int flags, ...), (at, name, flags, mode))
int creat(const char* name, mode_t mode) { return open_at(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char* name, mode_t mode) { return creat(name, mode); }

int close(int descriptor) {
  const char* path = tracked(descriptor);
  if (!path) return (int)syscall(SYS_close, descriptor);
  int due = files[descriptor].writable && is_due();
  if (due && target.when != AFTER) die();
  pthread_mutex_lock(&mutex);
  free(files[descriptor].path);
  files[descriptor].path = NULL;
  pthread_mutex_unlock(&mutex);
  int result = (int)syscall(SYS_close, descriptor);
  if (due) die();
  return result;
}

/* ---- calls on open files ---- */

/* Write at an offset, or where the file stands if it is negative. */
static ssize_t write_at(int descriptor, const struct iovec* data, int num_data, int64_t offset) {
  const char* path = tracked(descriptor);
  int64_t place = offset;
  if (path && offset < 0) {
    struct stat status;
    int append = fcntl(descriptor, F_GETFL) & O_APPEND;
    place = append && !fstat(descriptor, &status) ? status.st_size : lseek(descriptor, 0, SEEK_CUR);
  }
  int due = path && is_due();
  if (due && target.when == BEFORE) die();
  struct iovec half;
  if (due && target.when == MIDDLE && num_data > 0) {
    half = (struct iovec){data[0].iov_base, num_data > 1 ? data[0].iov_len : data[0].iov_len / 2};
    data = &half, num_data = 1;
  }
  ssize_t result = offset < 0 ? syscall(SYS_writev, descriptor, data, num_data)
                              : syscall(SYS_pwritev, descriptor, data, num_data, (long)offset, 0L);
  if (due) die();
  if (path && result >= 0) log_call(WRITE, descriptor, path, NULL, place, 0, data, num_data, result);
  return result;
}
ssize_t write(int descriptor, const void* data, size_t size) {
  if (!tracked(descriptor)) return syscall(SYS_write, descriptor, data, size);
  return write_at(descriptor, &(struct iovec){(void*)data, size}, 1, -1);
}
ssize_t pwrite(int descriptor, const void* data, size_t size, off_t offset) {
  return write_at(descriptor, &(struct iovec){(void*)data, size}, 1, offset);
}
ssize_t pwrite64(int descriptor, const void* data, size_t size, off_t offset) {
  return pwrite(descriptor, data, size, offset);
}
ssize_t writev(int descriptor, const struct iovec* data, int num_data) {
  return write_at(descriptor, data, num_data, -1);
}
ssize_t pwritev(int descriptor, const struct iovec* data, int num_data, off_t offset) {
  return write_at(descriptor, data, num_data, offset);
}
ssize_t pwritev64(int descriptor, const struct iovec* data, int num_data, off_t offset) {
  return write_at(descriptor, data, num_data, offset);
}

/* Copies inside the kernel would escape the log: say they do not exist, and the callers copy themselves. */
ssize_t copy_file_range(int in, off_t* in_offset, int out, off_t* out_offset, size_t size, unsigned flags) {
  if (!tracked(out)) return syscall(SYS_copy_file_range, in, in_offset, out, out_offset, size, flags);
  errno = ENOSYS;
  return -1;
}
ssize_t sendfile(int out, int in, off_t* offset, size_t size) {
  if (!tracked(out)) return syscall(SYS_sendfile, out, in, offset, size);
  errno = EINVAL;
  return -1;
}
ssize_t sendfile64(int out, int in, off_t* offset, size_t size) { return sendfile(out, in, offset, size); }

/* Make a call on an open file, die around it if this is the one, and log it if it worked. */
#define FILE_CALL(descriptor, call, operation, size)                                        \
  do {                                                                                      \
    const char* path = tracked(descriptor);                                                 \
    int due = path && is_due();                                                             \
    if (due && target.when != AFTER) die();                                                 \
    if (path && operation == SYNCED) log_call(SYNC, descriptor, path, NULL, 0, 0, 0, 0, 0); \
    long result = (call);                                                                   \
    if (due) die();                                                                         \
    if (path && result == 0) log_call(operation, descriptor, path, NULL, 0, size, 0, 0, 0); \
    return (int)result;                                                                     \
  } while (0)

int fsync(int descriptor) { FILE_CALL(descriptor, syscall(SYS_fsync, descriptor), SYNCED, 0); }
int fdatasync(int descriptor) { FILE_CALL(descriptor, syscall(SYS_fdatasync, descriptor), SYNCED, 0); }
int ftruncate(int descriptor, off_t size) {
  FILE_CALL(descriptor, syscall(SYS_ftruncate, descriptor, size), SIZE, size);
}
int ftruncate64(int descriptor, off_t size) { return ftruncate(descriptor, size); }
int fallocate(int descriptor, int mode, off_t offset, off_t size) {
  FILE_CALL(descriptor, syscall(SYS_fallocate, descriptor, mode, offset, size), ALLOCATE, mode ? 0 : offset + size);
}
int fallocate64(int descriptor, int mode, off_t offset, off_t size) {
  return fallocate(descriptor, mode, offset, size);
}
int posix_fallocate(int descriptor, off_t offset, off_t size) {
  return fallocate(descriptor, 0, offset, size) ? errno : 0;
}
int posix_fallocate64(int descriptor, off_t offset, off_t size) { return posix_fallocate(descriptor, offset, size); }
