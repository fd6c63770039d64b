// How weights are packed for products: panels of PANEL output columns, in each all groups of inputs one after the other,
// the columns of a group side by side. So a product reads the weight once, from front to back, whatever the rows.
#define VECTORS_A_PANEL 4
#define PANEL (VECTORS_A_PANEL * LANES)
#define ROWS 6  // rows x vectors of a panel are sums that stay in registers: 24 of 32
#define AHEAD 1024  // bytes of the weight that are fetched before their time

INLINE int64_t panels(int64_t N) { return (N + PANEL - 1) / PANEL; }

// Columns with those that the last vector is filled up with.
INLINE int64_t padded_columns(int64_t N) { return (N + LANES - 1) / LANES * LANES; }

// Vectors in panel p: the last one may be narrower, and its last vector is filled up with zeros.
INLINE int64_t vectors_in(int64_t N, int64_t p) {
    int64_t left = N - p * PANEL;
    return left >= PANEL ? VECTORS_A_PANEL : (left + LANES - 1) / LANES;
}

// Few panels and many rows: the rows are shared too, in so many parts.
INLINE int64_t parts_of_rows(int64_t M, int64_t N) { return M >= 96 && panels(N) < 64 ? 4 : 1; }

// The height of tile t of so many, all alike: 8 rows are 4 and 4.
INLINE int height_of(int64_t rows, int64_t t, int64_t tiles) { return (int)((rows - 1 - t) / tiles + 1); }

#define BY_HEIGHT(n, v, call)                     \
    switch (n) {                                  \
        case 1: { enum { HEIGHT = 1, WIDTH = v }; call; } break; \
        case 2: { enum { HEIGHT = 2, WIDTH = v }; call; } break; \
        case 3: { enum { HEIGHT = 3, WIDTH = v }; call; } break; \
        case 4: { enum { HEIGHT = 4, WIDTH = v }; call; } break; \
        case 5: { enum { HEIGHT = 5, WIDTH = v }; call; } break; \
        default: { enum { HEIGHT = 6, WIDTH = v }; call; } break; \
    }

#define BY_SIZE(n, v, call)                \
    switch (v) {                           \
        case 1: BY_HEIGHT(n, 1, call) break; \
        case 2: BY_HEIGHT(n, 2, call) break; \
        case 3: BY_HEIGHT(n, 3, call) break; \
        default: BY_HEIGHT(n, 4, call) break; \
    }
