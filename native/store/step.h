// One layer's part of a micro-batch: stage, index, attend, probe, commit; or all but the first at once. Each phase is a number of independent work items; whoever owns threads
// runs the items of a phase on as many as it likes and waits before the next phase.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "kernel/batch.h"
#include "store/cache.h"

namespace mikv {

struct StepShape {
    int  index;    // layer
    int  n_stream; // streams in the batch, from first_stream on
    int  first_stream;
    int  n_tokens; // per stream
    int  n_kv;     // cells that attention looks at
    int  n_head;   // query heads
    bool staged;   // this layer's rows of the micro-batch wait in the staging; else attention sees committed rows only
};

struct StepData {
    const char *     q             = nullptr; // f32; strides in bytes
    int64_t          q_token_bytes = 0, q_head_bytes = 0, q_stream_bytes = 0;
    const uint16_t * mask       = nullptr; // f16, or null: everything is visible; strides in values
    int64_t          mask_token = 0, mask_stream = 0;
    const float *    sinks = nullptr; // [n_head] or null
    float *          out   = nullptr; // [n_stream][n_tokens][n_head][head_dim_v]
    RowSource        rows;            // the staged rows, where they do not wait in the staging
    float *          copy  = nullptr; // where out is copied to once all rows were read, or null
    float            scale = 1, max_bias = 0, softcap = 0;
    int q_block = 0, out_block = 0; // queries are still to be rotated, in blocks of so many values; so is what goes out
};

struct CellRange {
    int first, last;
};

// What attention runs over, the same for all heads of a layer: the cells; of a pool its rows and, from a multiple of 64 on (so that no tile of a
// kernel has both), the tokens of the micro-batch that wait.
struct Columns {
    bool pooled;
    int  first_token;
    int  n;
    int  token(int column) const { return pooled && column >= first_token ? column - first_token : -1; }
};

// Few query rows of a KV head are worked off in one pass over the packed cells, many through other kernels.
bool queries_are_few(int n_tokens, int group);

class Step {
public:
    // Plans the items; n_threads is a hint for how finely to cut. Reserves scratch in the cache: false if memory is short.
    Step(Cache & cache, const StepShape & shape, int n_threads);
    static size_t scratch_bytes(const Cache & cache, const StepShape & shape, int n_threads);
    bool          reserve(); // once all steps of a graph are known to be no larger: the steps share the scratch

    void bind(const StepData & data) { data_ = data; } // before the first phase that needs it
    // cells: [n_stream * n_tokens], stream * n_cells + cell, as llama.cpp gives them. Once per micro-batch, before any layer is indexed.
    static void begin_batch(Cache & cache, const StepShape & shape, const int64_t * cells, const StepData & data);
    // Which cells this layer's staged rows go to.
    void bind_cells(const int64_t * cells) { cell_ids_ = cells; }

    // Few queries need one phase: its first items index their cells and attend, the others commit a head each: whoever comes to one of these
    // before its head is attended leaves it to the thread that attends. Else the phases are index, attend, probe and commit.
    bool has_one_phase() const { return few(); }
    void start(); // before the only phase
    int  items() const { return attend_items() + commit_items(); }
    void work(int item);

    int  index_items() const { return n_heads(); }
    void index(int item);
    int  attend_items() const;
    void attend(int item);
    int  probe_items() const; // 0: nothing to probe
    void probe(int item);
    int  commit_items() const { return n_heads(); }
    void commit(int item); // merges what attend left in parts; stores the staged rows, if there are any

private:
    struct Scratch; // where the arrays lie
    Scratch          lay_out() const;
    int              n_heads() const { return shape_.n_stream * cache_.shape().n_head_kv; }
    int              group() const { return shape_.n_head / cache_.shape().n_head_kv; }
    bool             few() const;
    int              n_chunks() const;
    bool             reads(unsigned what) const;                                      // does the policy
    bool             reads_each() const { return reads(reads_most | reads_squares); } // every single query's attention
    std::vector<int> probes(int stream) const;
    void             note(const Scratch & s, const float * weights, float factor, int n, size_t at) const;
    void             add_queries(int stream, int head) const;
    QueryRows        gather(int stream, int head, int first_token, int n_tokens, float * q, float * slope) const;
    // With the mask of these columns, where they are not the cells; memory keeps it.
    QueryRows    over_columns(QueryRows rows, int stream, int head, CellRange columns, std::vector<uint16_t> & memory) const;
    bool         own_waiting() const { return columns_.pooled || !shape_.staged; }
    const Head & head_of(int stream, int head) const { return heads_[size_t(stream) * cache_.shape().n_head_kv + head]; }
    Transform    key_transform(int stream, int head) const;
    StagedRows   staged_rows(int stream, int head) const;
    CellIndex    cell_index(int stream, int head) const;
    CellRange    chunk_cells(int chunk) const;
    void         index_chunk(int head_item, CellRange cells);
    void         attend_chunk(int head_item, int chunk);
    void         attend_block(int head_item, int block);
    void         merge_chunks(int head_item);
    void         write_out(int stream, int query_head, int token, float m, float l, const float * acc, float * final_m,
                           float * final_l) const;
    void         commit_staged(int head_item);
    int          seen_cells() const;
    void         attend_item(int item);
    void         end_head(int head_item);

    Cache &         cache_;
    StepShape       shape_;
    int             n_threads_;
    Columns         columns_;
    StepData        data_;
    const int64_t * cell_ids_ = nullptr;
    int             reach_; // columns worked on: all, or in the only phase none behind the last that is seen

    // How far a head of the only phase is.
    struct Progress {
        std::atomic<int>  to_attend{0}; // items that are not done
        std::atomic<bool> left{false};  // its commit is left to whoever ends its last item
        std::atomic<bool> ended{false}; // somebody commits it
    };
    std::vector<Head>           heads_;     // [n_heads]
    std::unique_ptr<Progress[]> progress_;  // [n_heads]
    std::atomic<int>            to_end_{0}; // heads that are not committed
};

// All phases of one layer, one after another, on n_threads threads of its own: for use without llama.cpp.
mikv_status run_step(Cache & cache, int index, const mikv_step & step, int n_threads);

} // namespace mikv
