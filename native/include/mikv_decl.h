/* The C API of mikv_cpp: declarations only, read verbatim by C, C++ and cffi (so: no preprocessor beyond integer defines).
 *
 * Conventions
 *   - Every function that can fail returns mikv_status; on anything but MIKV_OK mikv_last_error() has one sentence.
 *   - A cache is named by an id, never by a pointer: an id whose cache is gone gives MIKV_ERROR_NOT_FOUND, never a crash.
 *   - Sizes end in _bytes or start with bytes_, counts start with n_. Arrays are written by the callee into memory that the
 *     caller owns. "cell" is llama.cpp's word for one token's place in the cache; "stream" its word for a separate run of cells.
 *   - Functions may be called from any thread, but not on a cache while llama_decode works on it.
 */

#define MIKV_POLICY_NAME_SIZE 32

typedef enum mikv_status {
    MIKV_OK                = 0,
    MIKV_ERROR_ARGUMENT    = 1, /* a value that cannot be used; the sentence names it and what would do */
    MIKV_ERROR_MEMORY      = 2, /* an allocation failed */
    MIKV_ERROR_NOT_FOUND   = 3, /* unknown device, cache id, layer, policy or kernel */
    MIKV_ERROR_BUDGET      = 4, /* the budget is too small; the sentence names the smallest that works */
    MIKV_ERROR_UNSUPPORTED = 5, /* this build or machine cannot do it */
    MIKV_ERROR_STATE       = 6  /* a saved state that is damaged, or of something else than this cache */
} mikv_status;

/* mikv_config.balance: how channels of the keys are weighed against those of the queries before quantizing. */
typedef enum mikv_balance {
    MIKV_BALANCE_OFF = 0,
    MIKV_BALANCE_MAX = 1, /* b = sqrt(max |q| / max |k|): the channel balancer of MiKV, arXiv 2402.18096, equations 2 to 4 */
    MIKV_BALANCE_RMS = 2, /* damped: (rms q / rms k) to the power 0.2; off by itself where all channels are much alike */
    /* not weighed, but put in another order or basis, for lead_share; queries go the same way */
    MIKV_BALANCE_SALIENCE = 3, /* channels by mean |q| * (max k - min k), the largest first (MixKVQ, arXiv 2512.19206) */
    MIKV_BALANCE_RANGE    = 4, /* channels by max k - min k alone */
    MIKV_BALANCE_BASIS    = 5, /* principal axes of the keys, the largest variance first (as MixedDimKV, arXiv 2603.20616) */
    /* weighed by the keys alone */
    MIKV_BALANCE_ALIKE    = 6  /* b = 1 / (max k - min k): all channels have one range, as if each were quantized on its own (KIVI, arXiv 2402.02750) */
} mikv_balance;

#define MIKV_GROUP_HALF -1 /* mikv_config.group: half the head size where that is 32 or 64, else automatic */

/* How a cache stores its tokens. Fill with mikv_config_default() first, then change fields. */
typedef struct mikv_config {
    int64_t budget_bytes;  /* bytes the whole cache may take, metadata and staging of up to 512 tokens included; 0: refined_share decides */
    int32_t k_bits;        /* base bits of a key:   2, 3 or 4; or 0, with lead_share: only its leading channels have a base */
    int32_t v_bits;        /* base bits of a value: 2, 3 or 4 */
    int32_t refined_bits;  /* bits of a refined token, keys and values: 2, 3, 4, 5, 6, 8, or 16 (f16); not below k_bits and v_bits */
    int32_t group;         /* values that share a scale and a minimum: 0 (64, or 32 where the head size asks), MIKV_GROUP_HALF, 32 or 64 */
    int32_t sinks;         /* first tokens of a sequence, kept exact (f16): 0 .. 64 */
    int32_t window;        /* most recent tokens of a sequence, always refined while they are: 0 .. 4096 */
    int32_t center_keys;   /* 1: subtract the mean key of each block of 128 tokens before quantizing; 0: do not */
    int32_t head_dim_k;    /* values in one key head, if known before the first graph; 0: learnt from the graph */
    int32_t head_dim_v;    /* the same for a value head */
    int32_t compress_f16;  /* 1: also take caches of logical type f16 (needs flash attention); 0: only q8_0 */
    float   refined_share; /* share of a cache's cells that may be refined: 0 .. 1 */
    char    policy[32];    /* who is refined when not all can be: a built-in or registered name; with "*v" behind it: times the value's norm */
    char    layers[32];    /* a table registered by mikv_layers_register(): what some layers do otherwise; "": nothing */
    int32_t rotate;        /* 1: rows that llama.cpp does not rotate are rotated (Hadamard) before quantizing; 0: they are not */
    int32_t balance;       /* mikv_balance; fixed for a KV head by the first micro-batch that it meets, if that has 32 tokens; before the rotation */
    int32_t end_points;    /* 1: codes of the base are rounded to a group's extremes (equation 1 of MiKV); 0: to the middles of its bins */
    float   recent_share;  /* share of the refined tokens (of a pool: of the kept ones) that are the most recent, if that is more than window: 0 .. 1 */
    float   rows;          /* tokens that are kept of each KV head: up to 1 a share of the cells (1: all), above that a number. Of a pool, tokens
                              beyond it are dropped, by the policy, never sinks or window; refined_share is then of the rows kept; with a budget,
                              rows below 1 say that there is a pool, and the budget how many rows */
    float   lead_share;    /* share of a key's channels that lead, 0 .. 1, rounded to groups, which are then of 32 unless group says otherwise: their
                              base has lead_bits in place of k_bits, and they are rotated apart from the rest. Which ones lead: see balance */
    int32_t lead_bits;     /* 2, 3 or 4 */
} mikv_config;

/* What a cache is: its sizes. */
typedef struct mikv_shape {
    int32_t n_layer;
    int32_t n_head_kv;
    int32_t n_cells;    /* per stream */
    int32_t n_stream;
    int32_t head_dim_k; /* kept padded to a multiple of 32 */
    int32_t head_dim_v; /* the same */
} mikv_shape;

/* What a cache holds now. "Rows" are (token, layer, KV head): one key and one value vector. */
typedef struct mikv_stats {
    uint64_t id;
    int64_t  bytes_total;    /* all memory of the cache: the next four added up */
    int64_t  bytes_base;     /* codes, scales and minima of every cell */
    int64_t  bytes_refined;  /* refinement codes and exact rows */
    int64_t  bytes_metadata; /* block means, slot maps, scores, cell tables */
    int64_t  bytes_staging;  /* rows of the micro-batch at work (f16), shared by all layers */
    int64_t  bytes_scratch;  /* working memory of the kernels, not cache: shared by all layers, grows with micro-batch and context */
    int64_t  bytes_f16;      /* the same cells in llama.cpp's f16 cache */
    int64_t  bytes_used;     /* of bytes_total, what cells that hold a token take (base and refinement) */
    int64_t  bytes_used_f16; /* the tokens held, in f16 */
    int64_t  tokens;         /* cells that hold a token, all streams */
    int64_t  rows_exact;
    int64_t  rows_refined;
    int64_t  rows_base;
    int64_t  rows_dropped;   /* of the tokens held: those that a pool has no rows for */
    int64_t  demotions;      /* rows that lost their refinement, or were dropped, since the cache was made or cleared */
    double   mass_exact;     /* attention mass that fell on rows of each precision since then: their sum is 1 */
    double   mass_refined;   /*   (0, 0, 0 before any attention was measured) */
    double   mass_base;
    mikv_shape  shape;
    mikv_config config;      /* as applied: group, refined_share, window and head sizes resolved; rotate: by mikv_cpp, not llama.cpp */
} mikv_stats;

/* One layer's part of mikv_stats. */
typedef struct mikv_layer_stats {
    int32_t layer;           /* llama.cpp's layer number */
    int32_t k_bits;          /* as applied; of its first KV head, where heads differ */
    int32_t v_bits;
    int32_t refined_bits;
    int32_t n_slots;         /* refined rows that fit, of all KV heads of one stream */
    int64_t bytes_total;
    int64_t rows_exact;
    int64_t rows_refined;
    int64_t rows_base;
    int64_t demotions;
    double  mass_exact;      /* shares, as in mikv_stats */
    double  mass_refined;
    double  mass_base;
} mikv_layer_stats;

/* The question put to a policy: rank n rows of one KV head; rows with the highest priority keep or get refinement. */
typedef struct mikv_policy_query {
    int32_t layer;
    int32_t head;
    int32_t n;
    uint32_t now;            /* tokens stored so far in this stream, the newest included */
    const uint32_t * cell;   /* [n] */
    const uint32_t * born;   /* [n] value of `now` when the row was stored: larger is younger */
    const float    * mass;   /* [n] attention mass accumulated since then, summed over the query heads of the KV head */
    const float    * value_norm; /* [n] Euclidean norm of the value, estimated from its groups' ranges */
} mikv_policy_query;

/* Writes priority[n]. Called at commits, from llama.cpp's worker threads, several at once for different heads. */
typedef void (*mikv_policy_fn)(void * user, const mikv_policy_query * query, float * priority);

/* --- library -------------------------------------------------------------------------------------------------------------- */

const char * mikv_version(void);        /* of this library, "0.1.0" */
const char * mikv_ggml_version(void);   /* of the ggml this library was built for, "0.25.3" */
const char * mikv_last_error(void);     /* of this thread; "" when there was none; valid until the thread's next mikv_ call */
void         mikv_config_default(mikv_config * config);
mikv_status  mikv_config_check(const mikv_config * config); /* MIKV_OK or the sentence that says which value cannot be used */

/* Bytes that a cache of this shape takes, metadata included. */
mikv_status  mikv_config_bytes(const mikv_config * config, const mikv_shape * shape, int64_t * size_bytes);

int32_t      mikv_policy_count(void);
const char * mikv_policy_name(int32_t index);  /* NULL past the end */
mikv_status  mikv_policy_register(const char * name, mikv_policy_fn fn, void * user); /* user must outlive every cache */

/* Adds or replaces a table for mikv_config.layers; copied, and read when a cache is made.
 * table: rows "LAYER[.HEAD]:CHOICES" separated by commas, where CHOICES are any of kBITS, vBITS, rBITS and sSHARE, as k_bits, v_bits,
 * refined_bits and refined_share of mikv_config, and pTIMES, times as many rows of a pool as configured; rkBITS and rvBITS (2, 3, 4, 5, 6, 8; no less than the base) are bits of refined keys and values
 * alone. "0:k4v4r8s0.5,3.1:s0.1" has layer 0 at other bits and gives KV head 1 of layer 3 another share. Numbers are llama.cpp's. Of several choices for a head the last one counts. With a budget, shares are proportions, but a share of 1 is kept. */
mikv_status  mikv_layers_register(const char * name, const char * table);

int32_t      mikv_kernel_count(void);          /* kernel sets that this machine can run */
const char * mikv_kernel_name(int32_t index);  /* "plain", "avx2", "avx512", "neon"; NULL past the end */
const char * mikv_kernel_selected(void);
mikv_status  mikv_kernel_select(const char * name); /* NULL or "auto": the fastest; or the environment's MIKV_KERNEL */

/* --- llama.cpp: devices and the caches on them ------------------------------------------------------------------------------
 * A device is ggml's ggml_backend_dev_t of a MIKV device ("MIKV0"), passed as void *. */

mikv_status  mikv_device_configure(void * device, const mikv_config * config); /* for caches made on it from now on */
mikv_status  mikv_device_config(void * device, mikv_config * config);          /* as set, or from MIKV_* variables */
int32_t      mikv_device_caches(void * device, uint64_t * ids, int32_t capacity); /* how many, the first `capacity` written, oldest first */
const char * mikv_device_note(void * device);  /* why the newest cache on it was passed through uncompressed; "" if it was not */
const char * mikv_device_inner(void * device); /* name of the ggml device that it decorates, such as "CUDA0"; "" if it is none of ours */

/* --- caches ------------------------------------------------------------------------------------------------------------------ */

mikv_status  mikv_cache_stats(uint64_t id, mikv_stats * stats);
mikv_status  mikv_cache_layer_stats(uint64_t id, int32_t index, mikv_layer_stats * stats); /* index: 0 .. shape.n_layer - 1 */
/* out: uint8 [n_head_kv][n_cells], bits of each row's key: 16 exact, refined_bits, k_bits, or 0 where the cell is empty or its row was dropped */
mikv_status  mikv_cache_precision(uint64_t id, int32_t index, int32_t stream, uint8_t * out);
/* out: float [n_head_kv][n_cells], accumulated attention mass of refined rows, and of all rows of a pool; 0 elsewhere */
mikv_status  mikv_cache_scores(uint64_t id, int32_t index, int32_t stream, float * out);
const char * mikv_cache_home(uint64_t id); /* where its rows are and attention is computed: "CPU", "CUDA", "Metal", "emulated"; "" if it is gone */

/* --- saved caches -----------------------------------------------------------------------------------------------------------
 * A state is what some cells of a cache hold, packed as it is (FORMAT.md, "A saved cache"), the same on every device. Reading one checks
 * all of it before anything changes; mikv_cpp/state.py makes files of states, and docs/state.md says how llama.cpp's part comes with them. */

/* cells: [n] of the cache, stream * n_cells + cell, ascending. out: `capacity` bytes, or NULL to be told the size alone. */
mikv_status  mikv_state_write(uint64_t id, const int64_t * cells, int64_t n, uint8_t * out, int64_t capacity, int64_t * size_bytes);
/* twin: the id of a new cache of this one's layout that holds the state, to be given to mikv_cache_free(); this one stays as it is.
 * cells: [n] where the tokens go, as above and as many in each stream as were saved; NULL: to the first cells of each stream. Rows of another
 * codec, and keys that come into other blocks of 128 cells, are decoded and stored again; the others are copied. */
mikv_status  mikv_state_read(uint64_t id, const uint8_t * data, int64_t size_bytes, const int64_t * cells, int64_t n, uint64_t * twin);
/* Contents of the two change places; what was read last for a cache can be brought back so. */
mikv_status  mikv_state_swap(uint64_t id, uint64_t twin);

/* Rows that llama.cpp carries between a KV tensor and memory, whole state or sequence, when it saves or loads a state. */
typedef struct mikv_transfer {
    uint64_t cache;
    int64_t  first_row;     /* stream * n_cells + cell */
    int64_t  n_rows;
    int64_t  offset_bytes;  /* in the memory watched */
    int64_t  size_bytes;
    int32_t  index;         /* layer of the cache */
    int32_t  value;         /* 0: keys, 1: values */
} mikv_transfer;

/* From now on what this thread has llama.cpp carry between packed KV tensors and memory is noted, and not done: nothing is read, written or
 * cleared, until mikv_transfers_end(). data: the `size_bytes` that llama_state_get_data() or _set_data() works on. */
mikv_status  mikv_transfers_begin(const void * data, int64_t size_bytes);
/* How many were noted, the first `capacity` written; -1: one was not of whole rows. */
int32_t      mikv_transfers(mikv_transfer * out, int32_t capacity);
void         mikv_transfers_end(void);

/* --- a cache without llama.cpp: for tests, benchmarks and other engines ---------------------------------------------------- */

/* One micro-batch of one layer: rows to store, then attention over everything stored and these rows. */
typedef struct mikv_step {
    int32_t n_tokens;        /* all streams together; the tokens of a stream stand together, n_tokens / n_stream each */
    int32_t n_stream;        /* streams in this batch, from first_stream on */
    int32_t first_stream;
    int32_t n_kv;            /* cells that attention looks at, from 0 */
    int32_t n_head;          /* query heads, a multiple of n_head_kv */
    float   scale;           /* of q . k */
    float   max_bias;        /* ALiBi, 0: none */
    float   logit_softcap;   /* 0: none */
    const int64_t  * cells;  /* [n_tokens] stream * n_cells + cell */
    const float    * k;      /* [n_tokens][n_head_kv][head_dim_k]; attended and stored as f16 would hold them */
    const float    * v;      /* [n_tokens][n_head_kv][head_dim_v]; the same */
    const float    * q;      /* [n_tokens][n_head][head_dim_k] */
    const uint16_t * mask;   /* f16 [n_stream][n_tokens / n_stream][n_kv]: -inf where a query does not see a cell */
    const float    * sinks;  /* [n_head] or NULL: attention sink logits */
    float          * out;    /* [n_tokens][n_head][head_dim_v] */
} mikv_step;

mikv_status  mikv_cache_create(const mikv_config * config, const mikv_shape * shape, uint64_t * id);
mikv_status  mikv_cache_free(uint64_t id);
mikv_status  mikv_cache_step(uint64_t id, int32_t index, const mikv_step * step, int32_t n_threads);
mikv_status  mikv_cache_clear(uint64_t id);
mikv_status  mikv_cache_copy_stream(uint64_t id, int32_t from, int32_t to);
/* keys (value = 0) or values (value = 1) of n cells from first_cell on: float [n][n_head_kv][head_dim].
 * Cells that hold no token hold one once written, and want both their keys and their values. */
mikv_status  mikv_cache_read(uint64_t id, int32_t index, int32_t value, int32_t stream, int32_t first_cell, int32_t n, float * out);
mikv_status  mikv_cache_write(uint64_t id, int32_t index, int32_t value, int32_t stream, int32_t first_cell, int32_t n, const float * in);

/* One row through the bit-split codec, with the selected kernel set. dim: multiple of group.
 * params: [dim / group] range and minimum (FORMAT.md, "A group"); base: dim * bits / 8 bytes;
 * refinement: dim * (refined_bits - bits) / 8 bytes (may be NULL when 0). end_points: as in mikv_config. */
mikv_status  mikv_codec_encode(int32_t dim, int32_t group, int32_t bits, int32_t refined_bits, int32_t end_points, const float * row,
                               uint16_t * params, uint8_t * base, uint8_t * refinement);
/* refinement NULL: the base alone is read back. */
mikv_status  mikv_codec_decode(int32_t dim, int32_t group, int32_t bits, int32_t refined_bits, const uint16_t * params,
                               const uint8_t * base, const uint8_t * refinement, float * row);
