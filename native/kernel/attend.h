// attend and score: attention of the rows of one KV head over a run of cells. Plain definition.
#pragma once

#include <math.h>

#include "kernel/load.h"
#include "kernel/logit.h"

namespace mikv {

// Logit of a query row against a key, mask and ALiBi included; masked_logit where the row does not see the cell.
MIKV_FN float finish_logit(const QueryRows & rows, int row, int cell, float dot) {
    return logit_of(dot, rows.mask[(row % rows.n_tokens) * rows.mask_stride + cell], rows.softcap,
                    rows.slope[row / rows.n_tokens]);
}

MIKV_FN float plain_dot(const float * a, const float * b, int n) {
    float sum = 0.0f;
    for (int i = 0; i < n; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}

MIKV_FN bool any_row_sees(const QueryRows & rows, int cell) {
    for (int t = 0; t < rows.n_tokens; t++) {
        if (rows.mask[t * rows.mask_stride + cell] != 0xFC00u) {
            return true;
        }
    }
    return false;
}

// score: logits [n_rows][logit_stride] of the cells [first, last), written at column `cell`. buffer: k.dim floats.
MIKV_FN void plain_score(const HeadView & head, const CellIndex & index, const StagedRows & staged, const QueryRows & rows,
                         int first, int last, float * logits, int64_t logit_stride, float * buffer) {
    for (int cell = first; cell < last; cell++) {
        if (!any_row_sees(rows, cell)) { // never read a row that nobody sees: it may hold anything
            for (int row = 0; row < rows.n_rows; row++) {
                logits[row * logit_stride + cell] = masked_logit;
            }
            continue;
        }
        const float * key = buffer;
        if (index.staged[cell] >= 0) {
            key = staged.k + index.staged[cell] * staged.k_stride;
        } else {
            load_key(head, cell, index.place[cell], buffer);
        }
        for (int row = 0; row < rows.n_rows; row++) {
            logits[row * logit_stride + cell] =
                finish_logit(rows, row, cell, plain_dot(rows.q + int64_t(row) * head.k.dim, key, head.k.dim));
        }
    }
}

MIKV_FN void plain_weigh(float * x, float m, int n) {
    for (int i = 0; i < n; i++) {
        x[i] = x[i] <= masked_logit ? 0.0f : expf(x[i] - m);
    }
}

// attend: logits as by score, made weights exp(logit - m), and the partial softmax sums of the cells [first, last).
// buffer: max(k.dim, v.dim) floats.
MIKV_FN void plain_attend(const HeadView & head, const CellIndex & index, const StagedRows & staged, const QueryRows & rows,
                          int first, int last, float * weights, int64_t weight_stride, const Partial & out, float * buffer) {
    plain_score(head, index, staged, rows, first, last, weights, weight_stride, buffer);
    for (int row = 0; row < rows.n_rows; row++) {
        float * weight = weights + row * weight_stride;
        float   m      = masked_logit;
        for (int cell = first; cell < last; cell++) {
            m = weight[cell] > m ? weight[cell] : m;
        }
        plain_weigh(weight + first, m, last - first);
        out.m[row] = m;
        out.l[row] = 0.0f;
        for (int i = 0; i < head.v.dim; i++) {
            out.acc[int64_t(row) * head.v.dim + i] = 0.0f;
        }
    }
    for (int cell = first; cell < last; cell++) {
        const float * value = nullptr;
        for (int row = 0; row < rows.n_rows; row++) {
            const float weight = weights[row * weight_stride + cell];
            if (weight == 0.0f) {
                continue;
            }
            if (!value) {
                value = buffer;
                if (index.staged[cell] >= 0) {
                    value = staged.v + index.staged[cell] * staged.v_stride;
                } else {
                    load_value(head, cell, index.place[cell], buffer);
                }
            }
            out.l[row] += weight;
            float * acc = out.acc + int64_t(row) * head.v.dim;
            for (int i = 0; i < head.v.dim; i++) {
                acc[i] += weight * value[i];
            }
        }
    }
}

} // namespace mikv
