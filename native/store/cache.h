// The object that remembers: all layers, streams and heads of one llama.cpp KV cache, with what is known of their rows.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "policy/policy.h"
#include "store/budget.h"
#include "store/cells.h"
#include "store/elsewhere.h"
#include "store/memory.h"
#include "store/staging.h"

namespace mikv {

// What a KV head needs to remember besides its arrays.
struct HeadState {
    uint32_t first_free     = 0; // slots nobody holds: a list through slot_mass
    int32_t  n_free         = 0;
    int32_t  end_slot       = 0; // one past the highest slot that anybody has held since the head was empty
    uint32_t first_free_row = 0; // rows of a pool that nobody has: a list through row_mass
    int32_t  n_free_rows    = 0;
    int32_t  n_refined      = 0;
    int32_t  n_exact        = 0;
    int64_t  demotions      = 0;         // rows dropped from a pool included
    double   mass[3]        = {0, 0, 0}; // attention mass on exact, refined and base rows
    int32_t  mean_count     = 0;         // keys in the running sum for the next block's mean
    int64_t  n_queries      = 0;         // in query_sums
    bool     settled        = false;     // whether keys are balanced is decided: by the first micro-batch
    bool     balanced       = false;     // they are
};

// One KV head of one layer and stream, with everything that belongs to it.
struct Head {
    HeadView    view;
    HeadState & state;
    float *     mean_sum; // [k.dim] sum of the keys stored since the last block got its mean
    uint8_t *   has_mean; // [n_blocks]
    float *
        query_sums; // [2][k.dim] sum of the queries and of their squares, scaled as for the logits; null: the policy does not ask
    uint16_t * balancer; // of balancer_size() values, or null: this cache has none
};

class Cache {
public:
    // layers: llama.cpp's layer numbers, in the order of their index here.
    static mikv_status create(const mikv_config & config, const mikv_shape & shape, std::vector<int> layers,
                              std::shared_ptr<Cache> * cache);

    uint64_t             id() const { return id_; }
    const mikv_shape &   shape() const { return shape_; }
    const mikv_config &  config() const { return config_; }
    const PolicyChoice & policy() const { return policy_; }
    int                  layer_number(int index) const { return layers_[index]; }

    Head head(int index, int stream, int head);
    // Of every stream alike.
    const HeadShape & head_shape(int index, int head) const { return layout_.at(index, head); }
    bool              pooled() const { return layout_.heads.front().pooled; }
    int               n_rows(int index) const { return layout_.n_rows(index); } // of the layer's head that has most
    CellTable &       cells(int stream) { return *cells_[stream]; }
    Staging &         staging() { return *staging_; }
    // What rows go through on their way in and out.
    Transform key_transform(const Head & head) const;
    Transform value_transform() const;
    // Rows [first, first + n) of the micro-batch, as the head holds them.
    StagedRows staged(const Head & head, int number, int first, int n, const RowSource & elsewhere) const;

    // The place (CellIndex::place) of each row in [first, last), at place[first] .. place[last - 1]; a row is a cell's unless heads are pooled.
    void index_cells(const Head & head, int first, int last, int32_t * place) const;

    void clear();
    // An empty cache of the same layout and layers, with an id of its own; null: no memory.
    std::shared_ptr<Cache> empty_twin() const;
    bool                   is_twin(const Cache & other) const { return family_ == other.family_; }
    // All that is remembered changes places with the twin's: a Head that was asked for before is of the other one then.
    void            swap_contents(Cache & twin);
    static uint64_t moves(); // how often that happened, to any cache
    // One layer's rows, keys and values; and what is known of the cells, once for all layers.
    void copy_stream(int index, int from, int to);
    void copy_stream_cells(int from, int to);
    // Rows [n][n_head_kv][head_dim] of consecutive cells, in the model's space. Cells without a token read as zero.
    void read(int index, bool value, int stream, int first_cell, int n, float * out);
    // adopt: cells without a token hold one from now on (state load); else their rows are skipped, and so are rows that come back as they were
    // read, up to rounding (a shift by nothing).
    void write(int index, bool value, int stream, int first_cell, int n, const float * in, bool adopt);

    mikv_stats       stats();
    mikv_layer_stats layer_stats(int index);
    void             precision(int index, int stream, uint8_t * out);
    void             scores(int index, int stream, float * out);

    // The rows live with somebody else from now on; null: here again. What the functions above need of them is brought home first; who uses head(),
    // cells() or index_cells() on such a cache calls bring_home before.
    void        live(std::unique_ptr<Elsewhere> elsewhere);
    Elsewhere * elsewhere() const { return elsewhere_.get(); }
    void        bring_home(int layer, bool change);

    Memory     scratch;   // working memory of the kernels (step.h)
    std::mutex balancing; // held while a head's balancer is made

private:
    friend class GpuCache; // the same on a device
    Cache() = default;
    bool allocate(); // what layout_ says; false: no memory
    void reset_head(Head head);
    // Places of all rows of a pool, or of those of n cells.
    std::vector<int32_t> places(const Head & head, int first_cell, int n) const;
    // One head's part of a write: rows [n][row size] in the cache's space.
    void write_head(Head & head, bool value, int stream, int first_cell, int n, const std::vector<float> & rows, bool adopt);
    int  flat(int index, int stream, int head) const { return (index * shape_.n_stream + stream) * shape_.n_head_kv + head; }

    uint64_t                                id_     = 0;
    uint64_t                                family_ = 0; // id of the cache that this is a twin of, or its own
    mikv_shape                              shape_{};
    mikv_config                             config_{};
    CacheLayout                             layout_;
    PolicyChoice                            policy_;
    std::vector<int>                        layers_;
    std::vector<std::unique_ptr<Memory>>    memory_; // [n_layer]
    std::vector<HeadState>                  states_;
    std::vector<float>                      mean_sums_;
    std::vector<uint8_t>                    has_mean_;
    std::vector<float>                      query_sums_;
    std::vector<uint16_t>                   balancers_; // [n_heads][balancer_size()]
    std::vector<std::unique_ptr<CellTable>> cells_;     // [n_stream]
    std::unique_ptr<Staging>                staging_;
    std::unique_ptr<Elsewhere>              elsewhere_;
};

// --- slots of one head -----------------------------------------------------------------------------------------------------
// Of the row; a whole pool's rows have theirs (HeadShape::whole).
int  take_slot(Head & head, uint32_t row); // -1: none free
void free_slot_of(Head & head, int slot);
int  take_exact(Head & head, uint32_t row); // -1: none free
void free_exact_of(Head & head, int exact);
// What the row has, slot or exact row, by its place.
void free_place(Head & head, int32_t place);
int  take_row(Head & head, uint32_t cell); // of a pool; -1: none free
void free_row(Head & head, int row);
// Slots, or rows of a pool, that nobody holds, in the order in which they will be taken.
enum class Held { slots, rows };
std::vector<uint32_t> free_list(const Head & head, Held what);
// That list from who owns each of the n: those named first, then the others in order.
std::vector<uint32_t> free_order(const uint32_t * owner, int n, const std::vector<uint32_t> & first = {});
void set_free_list(Head & head, Held what, const std::vector<uint32_t> & order); // of those whose owner is free_slot

} // namespace mikv
