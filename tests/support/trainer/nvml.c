/* Two devices. Device 0 has all figures; device 1 has neither GPM nor an energy counter, and is
   split into instances where INSTANCES is set: then it tells no utilisation either. It is idle on
   the host that IDLE_HOST names. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define NOT_SUPPORTED 3
typedef long Device;
typedef struct { unsigned gpu, memory; } Rates;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version, supported; } Support;
typedef struct { unsigned id; int result; double value; const char *words[3]; } Metric;
typedef struct { unsigned version, count; long *before, *after; Metric metrics[1]; } Request;
static long clock_, alive, reads;
static int is_idle_host(void) {
  char name[256] = ""; const char *idle = getenv("IDLE_HOST");
  gethostname(name, sizeof name - 1);
  return idle && !strcmp(name, idle); }
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) {
  *count = getenv("NO_DEVICE") ? 0 : 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *d) { *d = index + 1; return 0; }
int nvmlDeviceGetName(Device d, char *name, unsigned n) {
  strncpy(name, d == 1 ? "NVIDIA H100 80GB HBM3" : "NVIDIA A100-SXM4-80GB", n); return 0; }
int nvmlDeviceGetUUID(Device d, char *name, unsigned n) {
  snprintf(name, n, "GPU-%ld", d - 1); return 0; }
int nvmlDeviceGetUtilizationRates(Device d, Rates *r) {
  if (d == 2 && getenv("INSTANCES")) return NOT_SUPPORTED;
  r->gpu = d == 1 ? 100 : is_idle_host() ? 2 : 50; r->memory = 7; return 0; }
int nvmlDeviceGetMemoryInfo(Device d, Memory *m) {
  m->total = 80000; m->used = 1000 * d; m->free = m->total - m->used; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(Device d, unsigned long long *millijoules) {
  if (d == 2) return NOT_SUPPORTED;
  *millijoules = 5000 + 1500 * reads++; return 0; }
int nvmlGpmQueryDeviceSupport(Device d, Support *s) { s->supported = d == 1; return 0; }
int nvmlGpmSampleAlloc(long **s) {
  if (++alive > 2) return 20;  /* two at a time: a sample that is not freed is noticed */
  *s = malloc(sizeof(long)); return 0; }
int nvmlGpmSampleFree(long *s) { alive--; free(s); return 0; }
int nvmlGpmSampleGet(Device d, long *s) { *s = ++clock_; return 0; }
int nvmlGpmMetricsGet(Request *a) {
  if (*a->after - *a->before != 1) return 2;
  for (unsigned i = 0; i < a->count; i++) {
    Metric *m = &a->metrics[i];
    m->result = m->id == 10 ? NOT_SUPPORTED : 0;
    m->value = m->id == 2 ? 62.5 : m->id == 5 ? 40.0 + *a->after : -1; }
  return 0; }
/* Events: the codes of XIDS, separated by commas, then a timeout; LOST: a device that is gone. */
typedef struct { Device device; unsigned long long kind, data; unsigned gpu, compute; } Event;
static const char *next_xid;
int nvmlEventSetCreate(long *set) { *set = 1; next_xid = getenv("XIDS"); return 0; }
int nvmlDeviceRegisterEvents(Device d, unsigned long long kinds, long set) {
  return getenv("NO_EVENTS") ? NOT_SUPPORTED : kinds == 8 && set == 1 ? 0 : 2; }
int nvmlEventSetWait_v2(long set, Event *e, unsigned milliseconds) {
  if (set != 1 || milliseconds) return 2;
  if (!next_xid || !*next_xid) return getenv("LOST") ? 15 : 10;
  char *end; e->data = strtoull(next_xid, &end, 10); e->kind = 8; e->device = 1;
  next_xid = *end ? end + 1 : end; return 0; }
const char *nvmlErrorString(int code) { return "stand-in"; }
