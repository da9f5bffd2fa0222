/* A whole backend in C: one device, one operator (`add` on f32). Copy it to start a plug-in of your own.
 *
 *     cc -std=c11 -shared -fPIC -I native/include example.c -o libdatong_example.so
 *
 * A program keeps a list of additions over a table of values; temps are allocated when a step is larger than before. */
#include <stdlib.h>
#include <string.h>

#include "datong/backend.h"

#define MAX_VALUES 64
#define MAX_NODES 64

struct dt_error {
  dt_code code;
  const char* message; /* static text: nothing to free */
};
struct dt_device {
  int unused;
};
struct dt_program {
  int32_t value_count, node_count, input_count, output_count;
  int64_t widths[MAX_VALUES]; /* floats per leading unit */
  int rows[MAX_VALUES];       /* 1: leading dim is R, 0: T */
  float* temps[MAX_VALUES];   /* owned; NULL for inputs */
  int64_t capacity[MAX_VALUES];
  float* at[MAX_VALUES]; /* of this step */
  int32_t inputs[MAX_VALUES], outputs[MAX_VALUES];
  struct {
    int32_t a, b, y;
  } nodes[MAX_NODES];
  int64_t dims[MAX_VALUES][2];
};

static dt_error* fail(dt_code code, const char* message) {
  dt_error* e = malloc(sizeof *e);
  if (e) {
    e->code = code;
    e->message = message;
  }
  return e;
}

static dt_code error_code(const dt_error* e) { return e->code; }
static const char* error_message(const dt_error* e) { return e->message; }
static void error_free(dt_error* e) { free(e); }

/* ---- devices ---- */

static int32_t device_count(void) { return 1; }

static dt_error* device_info(int32_t index, dt_device_info* out) {
  if (index != 0) return fail(DT_INVALID, "[example] there is only device 0");
  memset(out, 0, sizeof *out);
  out->struct_size = sizeof *out;
  out->name = "example";
  out->description = "adds numbers";
  out->attributes.struct_size = sizeof out->attributes;
  return NULL;
}

static dt_error* device_open(int32_t index, const dt_pairs* options, dt_device** out) {
  (void)options;
  if (index != 0) return fail(DT_INVALID, "[example] there is only device 0");
  *out = calloc(1, sizeof **out);
  return *out ? NULL : fail(DT_OUT_OF_MEMORY, "[example] out of memory");
}

static void device_close(dt_device* device) { free(device); }

/* ---- questions ---- */

/* The host's structs may be longer than those of the header that this was built with. */
static const dt_value* value_at(const dt_value* values, int32_t i) {
  return (const dt_value*)((const char*)values + (size_t)i * values->struct_size);
}

static const dt_node* node_at(const dt_node* nodes, int32_t i) {
  return (const dt_node*)((const char*)nodes + (size_t)i * nodes->struct_size);
}

static const char* refusal(const dt_node* node, const dt_value* values, int32_t value_count) {
  if (strcmp(node->op, "add") != 0) return "the example knows only add";
  if (node->input_count != 2 || node->output_count != 1) return "add has two inputs and one output";
  for (int i = 0; i < 3; ++i) {
    const int32_t index = i < 2 ? node->inputs[i] : node->outputs[0];
    if (index < 0 || index >= value_count) return "a value index is out of range";
    const dt_value* v = value_at(values, index);
    if (v->dtype != DT_F32 || v->rank != 2 || v->dims[0] >= 0) return "add wants f32 [T or R, n]";
    if (v->kind != DT_INPUT && v->kind != DT_TEMP) return "add wants activations";
    if (v->dims[1] != value_at(values, node->inputs[0])->dims[1]) return "add wants equal shapes";
  }
  return NULL;
}

static dt_error* supports(const dt_node* node, const dt_value* values, int32_t value_count, dt_answer* out) {
  const char* reason = refusal(node, values, value_count);
  out->yes = reason == NULL;
  strncpy(out->text, reason ? reason : "example_add", sizeof out->text - 1);
  out->text[sizeof out->text - 1] = 0;
  return NULL;
}

/* ---- programs ---- */

static void program_free(dt_program* p) {
  if (p)
    for (int i = 0; i < MAX_VALUES; ++i) free(p->temps[i]);
  free(p);
}

static dt_error* compile(dt_device* device, const dt_part* part, const dt_pairs* options, dt_program** out) {
  (void)device, (void)options;
  if (part->value_count > MAX_VALUES || part->node_count > MAX_NODES || part->input_count > MAX_VALUES ||
      part->output_count > MAX_VALUES)
    return fail(DT_UNSUPPORTED, "[example] the part is too large");
  for (int32_t i = 0; i < part->node_count; ++i)
    if (refusal(node_at(part->nodes, i), part->values, part->value_count))
      return fail(DT_UNSUPPORTED, "[example] the part holds a node that supports refuses");
  dt_program* p = calloc(1, sizeof *p);
  if (!p) return fail(DT_OUT_OF_MEMORY, "[example] out of memory");
  p->value_count = part->value_count;
  for (int32_t i = 0; i < part->value_count; ++i) {
    const dt_value* v = value_at(part->values, i);
    p->widths[i] = v->rank == 2 ? v->dims[1] : 0;
    p->rows[i] = v->rank > 0 && v->dims[0] == DT_DIM_ROWS;
  }
  p->node_count = part->node_count;
  for (int32_t i = 0; i < part->node_count; ++i) {
    const dt_node* node = node_at(part->nodes, i);
    p->nodes[i].a = node->inputs[0];
    p->nodes[i].b = node->inputs[1];
    p->nodes[i].y = node->outputs[0];
  }
  for (int32_t i = 0; i < part->input_count; ++i) {
    const char* name = value_at(part->values, part->inputs[i])->name; /* the step's own inputs do not come as tensors */
    if (strcmp(name, "ids") && strcmp(name, "positions") && strcmp(name, "rows"))
      p->inputs[p->input_count++] = part->inputs[i];
  }
  p->output_count = part->output_count;
  memcpy(p->outputs, part->outputs, sizeof(int32_t) * (size_t)part->output_count);
  *out = p;
  return NULL;
}

static dt_error* program_node(const dt_program* p, int32_t node, dt_answer* out) {
  if (node < 0 || node >= p->node_count) return fail(DT_INVALID, "[example] no such node");
  out->yes = 1;
  strcpy(out->text, "example_add");
  return NULL;
}

static dt_error* program_memory(const dt_program* p, dt_memory* out) {
  memset(out, 0, sizeof *out);
  out->struct_size = sizeof *out;
  for (int i = 0; i < MAX_VALUES; ++i) out->arena += p->capacity[i] * p->widths[i] * 4;
  return NULL;
}

/* ---- run ---- */

static dt_error* run(dt_program* p, dt_cache* cache, const dt_step* step, const dt_tensor* inputs, int32_t input_count,
                     dt_tensor* outputs, int32_t output_count, dt_stream* stream) {
  (void)cache, (void)stream;
  if (input_count != p->input_count || output_count != p->output_count)
    return fail(DT_INVALID, "[example] wrong number of inputs or outputs");
  for (int32_t i = 0; i < input_count; ++i) p->at[p->inputs[i]] = inputs[i].data;
  for (int32_t n = 0; n < p->node_count; ++n) {
    const int32_t y = p->nodes[n].y;
    const int64_t count = p->rows[y] ? step->rows : step->tokens;
    if (count > p->capacity[y]) {
      float* larger = realloc(p->temps[y], (size_t)(count * p->widths[y]) * sizeof(float));
      if (!larger) return fail(DT_OUT_OF_MEMORY, "[example] out of memory");
      p->temps[y] = larger;
      p->capacity[y] = count;
    }
    p->at[y] = p->temps[y];
    const float *a = p->at[p->nodes[n].a], *b = p->at[p->nodes[n].b];
    for (int64_t i = 0; i < count * p->widths[y]; ++i) p->at[y][i] = a[i] + b[i];
  }
  for (int32_t i = 0; i < output_count; ++i) {
    const int32_t v = p->outputs[i];
    p->dims[v][0] = p->rows[v] ? step->rows : step->tokens;
    p->dims[v][1] = p->widths[v];
    outputs[i].dtype = DT_F32;
    outputs[i].rank = 2;
    outputs[i].dims = p->dims[v];
    outputs[i].data = p->at[v];
  }
  return NULL;
}

static const dt_api table = {
    .struct_size = sizeof(dt_api),
    .major = DT_API_MAJOR,
    .minor = DT_API_MINOR,
    .name = "example",
    .error_code = error_code,
    .error_message = error_message,
    .error_free = error_free,
    .device_count = device_count,
    .device_info = device_info,
    .device_open = device_open,
    .device_close = device_close,
    .supports = supports,
    .compile = compile,
    .program_free = program_free,
    .program_node = program_node,
    .program_memory = program_memory,
    .run = run,
};

#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
const dt_api* datong_backend_get_api(int32_t major, int32_t minor) {
  (void)minor;
  return major == DT_API_MAJOR ? &table : NULL;
}
