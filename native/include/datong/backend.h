/* SPDX-License-Identifier: Apache-2.0
 *
 * Datong backend interface, version 1.2: the one door between Datong and a chip.
 *
 * A backend is a shared library that exports one symbol, `datong_backend_get_api`. Datong calls the functions of the
 * table that it returns. The Python protocol datong/spec/backend.py has the same verbs.
 *
 * Rules
 *   - Every struct begins with `struct_size`, set by whoever fills it in; fields are only ever appended. A reader looks
 *     at a field only if struct_size covers it.
 *   - A NULL function is not implemented. Each function says what that means (required / optional: default).
 *   - Functions return NULL for success or a dt_error, which the caller frees with error_free. No exception, signal or
 *     exit crosses this line.
 *   - Strings are UTF-8, NUL-terminated, and belong to whoever filled them in, for as long as the object lives.
 *   - Calls on different objects may come from different threads; calls on one object never overlap.
 *   - An absent optional node input has the value index -1.
 *   - An array of structs has the stride of its first element's struct_size.
 */
#ifndef DATONG_BACKEND_H
#define DATONG_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DT_API_MAJOR 1 /* differs: refused */
#define DT_API_MINOR 3 /* grows with appended fields and functions. 1: dt_value.swapped, stacks of experts; 2: kinds of
                          caches, window tables, state slots; 3: times and limits */

/* ---- plain data ------------------------------------------------------------------------------------------------ */

typedef enum dt_dtype { /* datong/dtypes.py, column `c` */
  DT_F32 = 1, DT_F16 = 2, DT_BF16 = 3, DT_I64 = 4, DT_I32 = 5, DT_I8 = 6, DT_U8 = 7,
  DT_I4 = 8, DT_U4 = 9, /* two to a byte, low nibble first */
  DT_BOOL = 10,
  DT_F8E4M3 = 11, DT_F8E8M0 = 12, /* since 1.3 */
  DT_F4E2M1 = 13                   /* since 1.3; two to a byte, low nibble first. Formats name it, pieces are DT_U4 */
} dt_dtype;

typedef enum dt_code { DT_INVALID = 1, DT_UNSUPPORTED = 2, DT_OUT_OF_MEMORY = 3, DT_IO = 4, DT_INTERNAL = 5 } dt_code;

typedef struct dt_error dt_error;     /* opaque; read with error_code, error_message */
typedef struct dt_device dt_device;   /* an opened device */
typedef struct dt_program dt_program; /* a compiled part with its weights */
typedef struct dt_cache dt_cache;     /* a paged K/V cache */
typedef struct dt_buffer dt_buffer;   /* device memory */
typedef struct dt_stream dt_stream;
typedef struct dt_event dt_event;

typedef struct dt_pair { /* options and attributes */
  const char* key;
  const char* value;
} dt_pair;

typedef struct dt_pairs {
  size_t struct_size;
  const dt_pair* items;
  int32_t count;
} dt_pairs;

typedef struct dt_attr {
  size_t struct_size;
  const char* name;
  int32_t kind; /* 'i' i, 'f' f, 's' s */
  int64_t i;
  double f;
  const char* s;
} dt_attr;

/* One stored tensor of a weight: bytes in a file. Roles: datong/spec/formats.py. */
typedef struct dt_piece {
  size_t struct_size;
  const char* role; /* codes scale min super_scale super_min */
  const char* file; /* absolute path */
  int64_t offset;   /* bytes; any alignment */
  int64_t length;   /* bytes */
  int32_t dtype;    /* dt_dtype */
  int32_t rank;
  const int64_t* dims;
} dt_piece;

typedef enum dt_kind { DT_INPUT = 1, DT_WEIGHT = 2, DT_CONST = 3, DT_TEMP = 4 } dt_kind;
typedef enum dt_arena { DT_TOKENS = 1, DT_ROWS = 2 } dt_arena;

#define DT_DIM_TOKENS (-1) /* T: new tokens of the step */
#define DT_DIM_ROWS (-2)   /* R: rows whose logits are wanted */

typedef struct dt_value {
  size_t struct_size;
  const char* name;
  int32_t kind;  /* dt_kind */
  int32_t dtype; /* dt_dtype; of a weight: what it stands for (DT_F32) */
  int32_t rank;
  const int64_t* dims; /* logical; DT_DIM_* may stand first */
  /* weights. Of rank 3 (since 1.1): a stack of experts [E, out, in], whose pieces lie together, [E, ...], or apart: E
   * times the pieces of one, in order */
  const char* format; /* datong/spec/formats.py: f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 q4_k q5_k q6_k */
  int32_t piece_count;
  const dt_piece* pieces;
  /* constants: row-major, f32 or i64 by dtype; copied by compile */
  const void* data;
  /* temps: place in the arena; address = offset * capacity(arena), bytes per leading unit. arena 0: unplanned */
  int32_t arena;
  int64_t arena_offset;
  int64_t arena_size;
  /* since 1.1. Weights: 1 if the plain pieces are stored with the last two dims exchanged, [..., in, out] */
  int32_t swapped;
} dt_value;

typedef struct dt_node {
  size_t struct_size;
  const char* op;   /* datong/spec/ops.py */
  const char* name; /* unique in the part */
  int32_t input_count, output_count, attr_count;
  const int32_t* inputs; /* indices into dt_part.values, -1 = absent */
  const int32_t* outputs;
  const dt_attr* attrs;
} dt_node;

/* What a cache keeps. datong/spec/program.py, CacheSpec. A kind that a backend does not know is DT_UNSUPPORTED. */
typedef enum dt_cache_kind {
  DT_CACHE_TOKENS = 0,    /* keys and values of every token, or of the last `window` ones */
  DT_CACHE_LATENT = 1,    /* one row of key_dim per token, whose first value_dim channels are the value as well */
  DT_CACHE_INDEX = 2,     /* keys only, of every token */
  DT_CACHE_RECURRENT = 3, /* per sequence: f32 [kv_heads, key_dim, value_dim] */
  DT_CACHE_CONV = 4       /* per sequence: f32 [1, key_dim channels, value_dim tokens], oldest first */
} dt_cache_kind;

typedef struct dt_cache_spec { /* a layer has at most one of each kind */
  size_t struct_size;
  int32_t layer, kv_heads, key_dim, value_dim;
  int64_t window; /* tokens; 0 = unlimited */
  int32_t kind;   /* since 1.2: dt_cache_kind */
} dt_cache_spec;

typedef struct dt_part {
  size_t struct_size;
  int32_t value_count, node_count, input_count, output_count, cache_count;
  const dt_value* values;
  const dt_node* nodes; /* in execution order */
  const int32_t* inputs;
  const int32_t* outputs;
  const dt_cache_spec* caches;
  int64_t arena_tokens, arena_rows; /* bytes per leading unit of each arena */
} dt_part;

typedef struct dt_tensor { /* host memory, row-major, contiguous */
  size_t struct_size;
  int32_t dtype, rank;
  const int64_t* dims;
  void* data;
} dt_tensor;

/* The T new tokens of S sequences. datong/spec/program.py, Step. */
typedef struct dt_step {
  size_t struct_size;
  int64_t tokens, sequences, rows;
  const int64_t* ids;          /* [T] */
  const int64_t* positions;    /* [T] */
  const int64_t* query_starts; /* [S + 1] */
  const int64_t* context_lens; /* [S], after this step */
  const int32_t* block_tables; /* [S, table_width] */
  int64_t table_width;
  const int64_t* row_indices; /* [R] */
  /* since 1.2 */
  const int32_t* window_tables; /* [S, window_width], -1 where no window reaches; read where the cache has window_blocks */
  int64_t window_width;
  const int32_t* state_slots; /* [S], all different; a state is read unless context_lens = new tokens, and written */
} dt_step;

typedef struct dt_answer { /* of supports */
  size_t struct_size;
  int32_t yes;
  char text[256]; /* yes: the implementation; no: the reason */
} dt_answer;

typedef struct dt_device_info {
  size_t struct_size;
  const char* name;
  const char* description;
  int64_t memory_bytes;
  dt_pairs attributes;
} dt_device_info;

typedef struct dt_cache_layout {
  size_t struct_size;
  int32_t block_size; /* tokens */
  int32_t dtype;
  int64_t bytes_per_block; /* all layers, K and V; but for those that bytes_per_window_block counts */
  /* since 1.2; 0: windows always share the blocks; there are no states */
  int64_t bytes_per_window_block, bytes_per_state;
} dt_cache_layout;

typedef struct dt_memory {
  size_t struct_size;
  int64_t weights_mapped, weights_private, arena, cache;
} dt_memory;

/* Of one node since program_profile was switched on. Nanoseconds; begin: on a clock that all nodes of the process share. */
typedef struct dt_node_time {
  size_t struct_size;
  int64_t runs, total, last_begin, last;
} dt_node_time;

/* What a device can do at best; 0: unknown. A multiply-add is two operations. */
typedef struct dt_limits {
  size_t struct_size;
  double bytes_per_second, int8_per_second, f32_per_second;
} dt_limits;

/* ---- the table -------------------------------------------------------------------------------------------------- */

typedef struct dt_api {
  size_t struct_size;
  int32_t major, minor;
  const char* name; /* `cpu` */

  /* errors: required */
  dt_code (*error_code)(const dt_error*);
  const char* (*error_message)(const dt_error*);
  void (*error_free)(dt_error*);

  /* devices: required. device_info fills *out, whose strings live as long as the library. */
  int32_t (*device_count)(void);
  dt_error* (*device_info)(int32_t index, dt_device_info* out);
  dt_error* (*device_open)(int32_t index, const dt_pairs* options, dt_device** out); /* options: threads, isa */
  void (*device_close)(dt_device*);

  /* questions: required, no device needed. `values` are those of the part that the node's indices point into. */
  dt_error* (*supports)(const dt_node*, const dt_value* values, int32_t value_count, dt_answer* out);
  const char* const* (*fusions)(void); /* NULL-terminated names of fused operators; NULL function: none */

  /* programs: required. `part` is read during the call only. options: cache_dtype, max_tokens, max_rows,
   * and the backend's own (cpu: activations = i8 | f32, what block weights are multiplied with, or bf16, for bf16
   * weights). */
  dt_error* (*compile)(dt_device*, const dt_part*, const dt_pairs* options, dt_program** out);
  void (*program_free)(dt_program*);
  dt_error* (*program_node)(const dt_program*, int32_t node, dt_answer* out); /* which implementation runs it */
  dt_error* (*program_memory)(const dt_program*, dt_memory* out);
  /* optional: NULL = compile again each time. The caller frees *bytes with bytes_free. */
  dt_error* (*program_serialize)(const dt_program*, void** bytes, size_t* size);
  dt_error* (*program_deserialize)(dt_device*, const void* bytes, size_t size, dt_program** out);
  void (*bytes_free)(void*);

  /* memory: optional; NULL = run takes and gives host memory only */
  dt_error* (*buffer_alloc)(dt_device*, size_t bytes, dt_buffer** out);
  void (*buffer_free)(dt_buffer*);
  dt_error* (*upload)(dt_buffer*, size_t offset, const void* from, size_t bytes, dt_stream*);
  dt_error* (*download)(const dt_buffer*, size_t offset, void* to, size_t bytes, dt_stream*);

  /* caches: required where attention is supported */
  dt_error* (*cache_layout)(const dt_program*, dt_cache_layout* out);
  dt_error* (*cache_create)(dt_program*, int32_t blocks, dt_cache** out);
  void (*cache_free)(dt_cache*);
  dt_error* (*cache_copy_block)(dt_cache*, int32_t source, int32_t target, dt_stream*);

  /* run: required. `inputs`: one per part input that is not named ids, positions or rows (those come with the step), in
   * order. `outputs`: one per part output; run fills in dtype, rank, dims and data, which are the program's and valid
   * until the next run or program_free. stream NULL: synchronous. */
  dt_error* (*run)(dt_program*, dt_cache*, const dt_step*, const dt_tensor* inputs, int32_t input_count,
                   dt_tensor* outputs, int32_t output_count, dt_stream*);

  /* streams and events: optional; NULL = every call is synchronous */
  dt_error* (*stream_create)(dt_device*, dt_stream** out);
  void (*stream_free)(dt_stream*);
  dt_error* (*stream_sync)(dt_stream*);
  dt_error* (*event_record)(dt_stream*, dt_event** out);
  dt_error* (*event_wait)(dt_stream*, dt_event*);
  void (*event_free)(dt_event*);

  /* since 1.2, optional: NULL = windows share the blocks, and there are no states. window_blocks 0: windows share. */
  dt_error* (*cache_create_sized)(dt_program*, int32_t blocks, int32_t window_blocks, int32_t states, dt_cache** out);
  dt_error* (*cache_copy_state)(dt_cache*, int32_t source, int32_t target, dt_stream*);

  /* since 1.3, optional: NULL = nodes cannot be timed. Switching on begins anew. Timing may make the program slower. */
  dt_error* (*program_profile)(dt_program*, int32_t on);
  dt_error* (*program_time)(const dt_program*, int32_t node, dt_node_time* out);
  /* since 1.3, optional: NULL = unknown. Measured during the call, a second or so; bytes: how much memory to read. */
  dt_error* (*device_limits)(dt_device*, int64_t bytes, dt_limits* out);
} dt_api;

/* The one entry. `major`, `minor`: what the host speaks. Returns NULL if the library cannot speak that major version. */
typedef const dt_api* (*dt_get_api_fn)(int32_t major, int32_t minor);
#define DT_ENTRY "datong_backend_get_api"

#ifdef __cplusplus
}
#endif
#endif
