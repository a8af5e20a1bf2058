/* tales.c: a corpus of small stories whose exact probability is known.

   The stories come from a probabilistic grammar of our own. The grammar is written once, as code
   that makes choices; the same code draws a story or reads one back, so that generator and parser
   cannot drift apart. The surprisal of a story, -ln P(story | a story starts here), is the sum of
   ln(total / weight) over its choices, and the sidecar val.floor.tsv gives it for every validation
   story: no model can do better on average, so a loss is reported as excess over it.

   For the sum to be that probability, one text must have one derivation:
     - every branch is decided by the text that its options begin with, and these heads are
   prefix-free (checked whenever a story is drawn or read); a word is decided by its letters and the
   non-letter after them (checked for each list);
     - a word that a story has bound to a slot is not drawn again; the weights are renormalised over
   those that remain;
     - all weights are integers, and a draw is exact: rejection happens inside the integer sampler,
   never among stories. Every story is shorter than TALE_MAX bytes, its newline included. --selftest
   proves the bound: it walks through all branches with the widest word in each place.

   The sidecar opens with `# key<TAB>value` lines, then has a row for each story: its offset in
   val.txt, its bytes with the newline, and its nats. Those lines and rows add up: the floor of any
   set of stories is a sum of rows.

   Left out on purpose: a grammar file format, weights learnt from data, and any story that must be
   thrown away.

   Build and run:
       cc -O2 -o data/tales data/tales.c
       data/tales --out data/tales.d         writes train.txt, val.txt and val.floor.tsv
       data/tales --selftest

   Sections: 1 utilities, 2 words, 3 choices, 4 grammar, 5 corpus, 6 self-test, 7 options and main.
 */

#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// Changes whenever the grammar does: the same name, seed and index mean the same story.
#define GENERATOR "tales-1"
// A story and its newline are shorter than this: it fits a context of 256 bytes.
#define TALE_MAX 256
// A grammar under development may overrun TALE_MAX; the self-test must live to say so.
#define TEXT_ROOM  1024
#define WORD_ROOM  24 // bytes of a word form and its final 0
#define MAX_WORDS  1000
#define MAX_LISTS  40
#define MAX_BRANCH 24 // options at one branch
#define MAX_DEPTH  64 // branches in one story
#define SLOTS      26

// ---------------------------------------------------------------------------------------------------------------------
// 1. Utilities

__attribute__((noreturn)) static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("tales: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(2);
}

static uint64_t fnv1a64(uint64_t hash, const void *data, size_t n) {
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3ull;
    return hash;
}
#define COUNT(array) ((int)(sizeof(array) / sizeof(array)[0]))
#define FNV_START    0xcbf29ce484222325ull

// Letters by hand: <ctype.h> asks the locale, and the bytes must not depend on it.
static int is_letter(int c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

static uint64_t random_u64(uint64_t *state) { // splitmix64
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// Exactly uniform over 0..n-1: the first 2^64 mod n values are drawn again, what remains is a
// multiple of n.
static uint64_t random_below(uint64_t *state, uint64_t n) {
    uint64_t excess = (0 - n) % n, x;
    do x = random_u64(state);
    while (x < excess);
    return x % n;
}

// A product that no compiler may contract with a sum into a fused multiply-add: the last bit is the
// same everywhere.
static double product(double a, double b) {
    volatile double p = a * b;
    return p;
}

// ln x = k ln 2 + 2 atanh((m - 1) / (m + 1)) with x = m 2^k and m near 1. Not libm's, whose last
// bit varies.
static double ln(double x) {
    int k = 0;
    for (; x > 1.4142135623730951; k++) x *= 0.5;
    for (; x < 0.70710678118654757; k--) x *= 2.0;
    double s = (x - 1.0) / (x + 1.0), z = product(s, s), sum = 0.0;
    for (int i = 25; i >= 1; i -= 2)
        sum = product(z, sum) + 1.0 / i; // z < 0.03, so the terms end below 1e-18
    return product(k, 0.69314718055994530942) + product(2.0 * s, sum);
}

// ---------------------------------------------------------------------------------------------------------------------
// 2. Words

// One string for each list; the order is that of frequency (word_weight). A word may have three
// forms, text/plural/third; a plural that is not given is text + "s", and where the forms hold
// something else, a comment says what.
typedef struct ListSource {
    const char *name, *words;
} ListSource;

static const ListSource LISTS[] = {
    // The place in the list is the value, less one.
    {"number", "one,two,three,four,five,six,seven,eight,nine,ten,eleven,twelve"},
    // Second form: f or m, for the pronouns.
    {"name", "Ann/f,Tom/m,Meg/f,Ben/m,Lily/f,Sam/m,Nora/f,Jack/m,Ella/f,Max/m,Ida/f,Peter/m,Clara/"
             "f,Hugo/m,Mabel/f,Otto/m,"
             "Ruth/f,Finn/m,Molly/f,Leo/m,Daisy/f,Oscar/m,Hazel/f,Walter/m,Sally/f,Henry/m,Polly/"
             "f,Jim/m,Grace/f,Ned/m,Ivy/f,"
             "Ralph/m,Emma/f,Toby/m,Alice/f,Felix/m,Lucy/f,Simon/m,Betty/f,Basil/m,Wendy/f,Edgar/"
             "m,Flora/f,Bruno/m,Agnes/f,"
             "Fred/m,Tilly/f,Gus/m,Nelly/f,Hans/m,Dora/f,Karl/m,Kate/f,Hector/m,Susan/f,Rufus/m"},
    {"food", "apple,pear,plum,egg,bun,cake,nut,cherry/cherries,carrot,fig,pie,peach/"
             "peaches,lemon,berry/berries,cookie,turnip,"
             "potato/potatoes,onion,pancake,muffin,tart,bean,walnut,biscuit,olive,melon"},
    {"thing", "ball,drum,kite,bell,key,hat,book,lamp,ring,cup,map,coin,spoon,clock,boot,scarf,"
              "whistle,shell,button,ribbon,"
              "feather,lantern,candle,umbrella,mirror,flute,comb,brush,blanket,pencil,puppet,"
              "needle,hammer,violin,mitten,apron,"
              "stamp,letter,bottle,ladder,hoop,doll,rope,kettle,plate,fork,trumpet,banner,shovel,"
              "mask,anchor,ticket"},
    // Third form: its sound.
    {"animal", "cat//purred,dog//barked,hen//clucked,duck//quacked,mouse/mice/squeaked,owl//"
               "hooted,frog//croaked,bee//buzzed,"
               "goat//bleated,wolf/wolves/howled,pig//grunted,cow//mooed,crow//cawed,lion//"
               "roared,bear//growled,donkey//brayed,"
               "horse//neighed,goose/geese/honked,robin//chirped,snake//hissed,fox/foxes/"
               "yapped,lamb//bleated,kitten//mewed,"
               "puppy/puppies/whined,rabbit//sniffed"},
    {"role", "baker,farmer,miller,tailor,sailor,teacher,doctor,shepherd,gardener,cook,piper,weaver,"
             "painter,potter,cobbler,"
             "hunter,fiddler,clown,juggler,poet"},
    // Second form: being there.
    {"place", "river/by the river,mill/at the mill,hill/on the hill,garden/in the garden,market/at "
              "the market,"
              "forest/in the forest,lake/by the lake,bridge/on the bridge,castle/in the "
              "castle,school/at school,"
              "farm/on the farm,barn/in the barn,beach/on the beach,meadow/in the "
              "meadow,village/in the village,"
              "harbour/at the harbour,tower/in the tower,orchard/in the orchard,pond/by the "
              "pond,park/in the park,"
              "field/in the field,valley/in the valley,cave/in the cave,island/on the "
              "island,shop/at the shop,"
              "bakery/at the bakery,library/at the library,station/at the station"},
    {"spot", "under the bed,in the drawer,behind the door,in the teapot,on the shelf,on the "
             "stairs,in the cupboard,"
             "in the barrel,under the table,in the chest,by the stove,in the hay,under the rug,on "
             "the roof,by the fire,"
             "in the jug,under the bench,behind the wall,in the sink,on the piano,in the cradle,up "
             "in the tree,under the sofa,"
             "in the oven,in the hedge,by the gate,in the cart,in the nest"},
    {"look", "red,old,blue,small,green,new,shiny,yellow,big,white,little,black,tiny,brown,golden,"
             "pretty,grey,strange,silver,"
             "purple,lovely,plain,pink,odd,dusty,heavy,round,long,striped,painted,spotted,magic,"
             "funny,cheap,ugly,huge,dirty,"
             "clean,crooked,wet"},
    {"trait", "clever,brave,kind,shy,lazy,gentle,grumpy,curious,merry,proud,quiet,earnest,clumsy,"
              "polite,cheerful,silly,patient,"
              "careful,noisy,friendly,stubborn,timid,wise,bold,greedy,nosy,busy,fussy,dreamy,jolly,"
              "rude,loyal,humble,young,"
              "elegant,untidy"},
    {"mood", "happy,sad,tired,hungry,angry,sleepy,glad,cross,lonely,thirsty,worried,afraid,excited,"
             "calm,bored,pleased,upset,"
             "nervous,amazed"},
    {"weather", "cold,warm,sunny,rainy,windy,foggy,snowy,bright,stormy,frosty,misty,hot,cloudy,"
                "quiet,grey,chilly"},
    {"time", "morning,evening,day,Sunday,Monday"},
    {"day", "Monday,Tuesday,Wednesday,Thursday,Friday,Saturday,Sunday,week,night,spring,summer,"
            "autumn,winter"},
    {"month", "spring,summer,autumn,winter,January,March,April,May,June,July,August,October"},
    {"motion", "walked,ran,went,hurried,skipped,wandered,marched,raced,strolled,crept,trotted,"
               "rushed,hopped,tiptoed,rode,danced"},
    {"adverb", "slowly,quietly,gladly,sadly,proudly,bravely,happily,loudly,softly,sweetly,shyly,"
               "twice,again,all day"},
    {"way", "early,late,alone,singing,at dusk,on foot,at noon,in tears,laughing,by boat,by train"},
    {"said", "said,cried,shouted,called,sang,muttered,sighed,answered,yelled"},
    {"exclaim", "How lovely,Oh dear,What a day,Well done,Good luck,How odd,What fun,Hooray,What "
                "luck,How funny,Never mind,"
                "Not again,I knew it"},
    {"activity", "sang a song,took a nap,drank tea,danced,told jokes,climbed a tree,swept the "
                 "floor,fed the ducks,picked flowers,"
                 "played chess,made soup,baked bread,read a poem,went fishing,painted a "
                 "wall,counted stars,ate supper,laughed,"
                 "slept well,hummed a tune,lit a fire,had a bath,rested,milked the cow,cut the "
                 "grass,played cards,smiled,"
                 "went to bed"},
    // Comparative, superlative, its opposite.
    {"more",
     "taller/tallest/shortest,older/oldest/youngest,faster/fastest/slowest,stronger/strongest/"
     "weakest,"
     "richer/richest/poorest,louder/loudest/softest,wiser/wisest/silliest,happier/happiest/saddest,"
     "bolder/boldest/meekest,kinder/kindest/meanest"},
    {"pet", "Pip,Dot,Patch,Pepper,Ginger,Snowy,Fluffy,Boots,Tiger,Smoky,Bubbles,Honey,Socks,Coco,"
            "Bingo,Toffee"},
    {"chased", "chased,followed,feared,loved,bit,teased,scared,helped,liked,tickled,watched,kissed,"
               "missed,admired,rescued"},
    // Here and in the next, the past tense is also the participle.
    {"did", "washed,mended,painted,polished,dusted,cleaned,wrapped,packed,fixed,oiled,copied,"
            "weighed,hung up,sold"},
    {"lost", "lost,found,left,dropped,sold,bought,buried,made,mended,won,kept"},
    {"vessel", "box,jar,bag,pot,basket,sack,tin,case,purse,bucket,crate,bowl,vase"},
};

typedef struct Word {
    char form[3][WORD_ROOM]; // text, plural, third
    int weight;
} Word;

typedef struct List {
    const char *name;
    Word *words; // count of them, inside Lexicon.words
    int count;
    Word widest; // no word: as wide as the widest in every form, for the proof of the bound
} List;

typedef struct Lexicon {
    List lists[MAX_LISTS];
    Word words[MAX_WORDS];
    int list_count, word_count;
} Lexicon;

// Weight falls with the rank, gently: a list of 40 goes from 40 down to 18.
static int word_weight(int rank) { return 16 + 96 / (rank + 4); }

static Lexicon *lexicon_build(const ListSource *sources, int count) {
    Lexicon *lexicon = calloc(1, sizeof *lexicon);
    if (!lexicon || count > MAX_LISTS) die("no room for the lexicon");
    for (int i = 0; i < count; i++) {
        List *list = &lexicon->lists[lexicon->list_count++];
        list->name = sources[i].name;
        list->words = &lexicon->words[lexicon->word_count];
        for (const char *s = sources[i].words; *s; s += *s == ',') {
            if (lexicon->word_count == MAX_WORDS) die("MAX_WORDS is too small");
            Word *word = &lexicon->words[lexicon->word_count++];
            word->weight = word_weight(list->count++);
            int f = 0, n = 0;
            for (; *s && *s != ','; s++) {
                if (*s == '/') f++, n = 0;
                else word->form[f][n++] = *s;
                if (f > 2 || n > WORD_ROOM - 2)
                    die("list %s: a word has too many forms or letters", list->name);
            }
            if (!word->form[1][0]) strcat(strcpy(word->form[1], word->form[0]), "s");
        }
        // An "o" takes the longer article, and is not an "m": the widest name is a she.
        size_t width[3] = {0, 0, 0};
        for (int w = 0; w < list->count; w++)
            for (int f = 0; f < 3; f++)
                if (strlen(list->words[w].form[f]) > width[f])
                    width[f] = strlen(list->words[w].form[f]);
        for (int f = 0; f < 3; f++) memset(list->widest.form[f], 'o', width[f]);
    }
    return lexicon;
}

// A word that the letters and the non-letter that follows do not tell apart from another of the
// list, or NULL.
static const char *list_ambiguity(const List *list) {
    int forms =
        strcmp(list->name, "name") ? 2 : 1; // third forms are never drawn, nor is a name's second
    for (int k = 0; k < forms * list->count * list->count; k++) {
        int f = k % forms, i = k / forms % list->count, j = k / forms / list->count;
        const char *a = list->words[i].form[f], *b = list->words[j].form[f];
        if (i != j && !strncmp(a, b, strlen(a)) && !is_letter(b[strlen(a)])) return a;
    }
    return NULL;
}

// ---------------------------------------------------------------------------------------------------------------------
// 3. Choices

// GENERATE draws each choice; PARSE finds it in the input; BOUND takes the branches that `turn`
// says and widest words.
typedef enum Mode { GENERATE, PARSE, BOUND } Mode;

typedef struct Tale {
    const Lexicon *lexicon;
    Mode mode;
    int failed;      // PARSE: the input is no story of this grammar; every later call does nothing
    uint64_t random; // GENERATE: state of this story's own generator
    const char *input; // PARSE: the bytes to read, input_length of them
    size_t input_length;
    char text[TEXT_ROOM]; // the story so far; when parsing, what has been read of it
    size_t length;
    int after_word; // the last byte ended a drawn word: a letter here would make it another word
    const Word *slot[SLOTS];  // what the story has bound to A..Z
    int value[SLOTS];         // and its value, if it is a number
    char used[MAX_WORDS];     // words that are bound and therefore not drawn again
    double nats;              // sum of ln(total / weight) over the choices so far
    uint64_t choices, digest; // how many, and a hash of which
    int depth, turn[MAX_DEPTH],
        turns[MAX_DEPTH]; // BOUND: option to take, and options there are, at each branch
} Tale;

static void choice_record(Tale *t, int index, int weight, int total) {
    t->nats += ln((double)total / weight);
    t->choices++;
    uint32_t entry[2] = {(uint32_t)index, (uint32_t)total};
    for (int i = 0; i < 8; i++) { // byte by byte: the digest must not know the byte order
        unsigned char byte = (unsigned char)(entry[i / 4] >> (i % 4 * 8));
        t->digest = fnv1a64(t->digest, &byte, 1);
    }
}

static int input_starts(const Tale *t, const char *text) {
    size_t n = strlen(text);
    return t->length + n <= t->input_length && !memcmp(t->input + t->length, text, n);
}

static void text_append(Tale *t, const char *text) {
    size_t n = strlen(text);
    if (t->failed || n == 0) return;
    if (t->mode == PARSE && !input_starts(t, text)) {
        t->failed = 1;
        return;
    }
    if (t->after_word && is_letter(text[0]))
        die("grammar: a letter follows a drawn word in \"%s%s\"", t->text, text);
    if (t->length + n >= (t->mode == BOUND ? TEXT_ROOM : TALE_MAX))
        die("grammar: too long: %s%s", t->text, text);
    memcpy(t->text + t->length, text, n + 1);
    t->length += n;
    t->after_word = 0;
}

// The forms of a word, one letter each:
//   n text  N Text  p plural  P Plural  s third form  a "a text" or "an text"
//   h he or she  H He or She  m him or her  r his or her
static void word_format(char *out, const Word *word, char form) {
    static const char FORMS[] = "nNpPsahHmr";
    int male = word->form[1][0] == 'm';
    const char *texts[] = {word->form[0],       word->form[0],       word->form[1],
                           word->form[1],       word->form[2],       word->form[0],
                           male ? "he" : "she", male ? "he" : "she", male ? "him" : "her",
                           male ? "his" : "her"};
    const char *found = form ? strchr(FORMS, form) : NULL, *lead = "";
    if (!found) die("grammar: no form '%c'", form);
    const char *text = texts[found - FORMS];
    if (form == 'a') lead = strchr("aeiou", text[0]) ? "an " : "a ";
    snprintf(out, 2 * WORD_ROOM, "%s%s", lead, text);
    if (strchr("NPH", form) && out[0] >= 'a') out[0] = (char)(out[0] - 'a' + 'A');
}

static const Word *slot_word(const Tale *t, char slot) {
    if (slot < 'A' || slot > 'Z' || !t->slot[slot - 'A'])
        die("grammar: nothing in slot '%c' after \"%s\"", slot, t->text);
    return t->slot[slot - 'A'];
}

// Expands the template up to its first draw or its end and returns where that is. $Xf is the word
// in slot X in form f; $Xq is the number X and the noun in slot T, agreeing with it.
static const char *head_expand(const Tale *t, const char *s, char *out, size_t room) {
    size_t n = 0;
    while (*s && *s != '<') {
        char piece[2 * WORD_ROOM + WORD_ROOM] = {*s, 0};
        if (*s == '$') {
            word_format(piece, slot_word(t, s[1]), s[2] == 'q' ? 'n' : s[2]);
            if (s[2] == 'q') {
                strcat(piece, " ");
                word_format(piece + strlen(piece), slot_word(t, 'T'),
                            t->value[s[1] - 'A'] == 1 ? 'n' : 'p');
            }
            s += 2;
        }
        s++;
        if (n + strlen(piece) >= room) die("grammar: a head is too long");
        n += (size_t)snprintf(out + n, room - n, "%s", piece);
    }
    out[n] = 0;
    return s;
}

static const List *list_find(const Tale *t, const char *name, size_t n) {
    for (int i = 0; i < t->lexicon->list_count; i++)
        if (!strncmp(t->lexicon->lists[i].name, name, n) && !t->lexicon->lists[i].name[n])
            return &t->lexicon->lists[i];
    die("grammar: no list \"%.*s\"", (int)n, name);
}

static void slot_bind(Tale *t, char slot, const Word *word, int value) {
    t->slot[slot - 'A'] = word;
    t->value[slot - 'A'] = value;
}

// One draw: a word of the list whose place is in first..last, that is not used up, and whose second
// form starts with `filter` if there is one. The total is that of exactly these words.
static void word_choose(Tale *t, const List *list, int first, int last, char form, char filter,
                        char slot) {
    int allowed[MAX_WORDS], count = 0, total = 0, pick = -1;
    const Word *word = &list->widest;
    char text[2 * WORD_ROOM];
    if (t->mode != BOUND) {
        for (int i = first; i <= last; i++) {
            if (t->used[&list->words[i] - t->lexicon->words]) continue;
            if (filter && list->words[i].form[1][0] != filter) continue;
            allowed[count++] = i;
            total += list->words[i].weight;
        }
        if (t->mode == GENERATE) {
            int ticket = total > 0 ? (int)random_below(&t->random, (uint64_t)total) : -1;
            for (int i = 0; i < count && pick < 0; i++)
                if ((ticket -= list->words[allowed[i]].weight) < 0) pick = allowed[i];
        } else {
            for (int i = 0; i < count; i++) {
                word_format(text, &list->words[allowed[i]], form);
                if (!input_starts(t, text)) continue;
                size_t end = t->length + strlen(text);
                if (end < t->input_length && is_letter(t->input[end])) continue;
                if (pick >= 0) die("grammar: list %s is ambiguous at \"%s\"", list->name, text);
                pick = allowed[i];
            }
        }
        if (pick < 0 && t->mode == GENERATE) die("grammar: list %s is used up", list->name);
        if (pick < 0) t->failed = 1;
        if (t->failed) return;
        word = &list->words[pick];
        choice_record(t, pick, word->weight, total);
    }
    word_format(text, word, form);
    text_append(t, text);
    t->after_word = 1;
    if (!slot) return;
    slot_bind(t, slot, word, pick + 1);
    if (pick >= 0 && strcmp(list->name, "number"))
        t->used[word - t->lexicon->words] = 1; // two and two may meet
}

// A draw in a template: <list:form?filter=slot>, where all but the list may be absent, or
// <low-high=slot> for a number; a letter as `high` stands for one less than the number in that
// slot. Returns what follows.
static const char *draw_expand(Tale *t, const char *s) {
    size_t n = strcspn(s, ":?=>");
    int number = *s >= '0' && *s <= '9';
    const List *list = number ? &t->lexicon->lists[0] : list_find(t, s, n);
    int first = 0, last = list->count - 1;
    if (number) {
        first = s[0] - '1';
        last = s[2] <= '9' ? s[2] - '1' : t->mode == BOUND ? first : t->value[s[2] - 'A'] - 2;
    }
    char form = 'n', filter = 0, slot = 0;
    for (s += n; *s != '>'; s += 2) *(*s == ':' ? &form : *s == '?' ? &filter : &slot) = s[1];
    word_choose(t, list, first, last, form, filter, slot);
    return s + 1;
}

static void tale_say(Tale *t, const char *s) {
    char text[TEXT_ROOM];
    while (*s && !t->failed) {
        if (*s == '<') s = draw_expand(t, s + 1);
        else s = head_expand(t, s, text, sizeof text), text_append(t, text);
    }
}

typedef struct Option {
    int weight; // 0: not offered here
    const char *text;
} Option;

// Takes one of the options, says its text and returns its index. The heads, which is what the
// options say before their first draw, must be prefix-free: then the next bytes of a text leave one
// option, or none.
static int tale_branch(Tale *t, const Option *options, int count) {
    char head[MAX_BRANCH][160];
    int offered[MAX_BRANCH], n = 0, total = 0, pick = -1;
    if (t->failed) return 0;
    if (count > MAX_BRANCH) die("grammar: MAX_BRANCH is too small");
    for (int i = 0; i < count; i++) {
        if (options[i].weight == 0) continue;
        head_expand(t, options[i].text, head[n], sizeof head[n]);
        for (int j = 0; j < n && t->mode != BOUND; j++) {
            size_t a = strlen(head[j]), b = strlen(head[n]);
            if (!strncmp(head[j], head[n], a < b ? a : b))
                die("grammar: heads \"%s\" and \"%s\"", head[j], head[n]);
        }
        if (!head[n][0]) die("grammar: an option without a head: %s", options[i].text);
        offered[n++] = i;
        total += options[i].weight;
    }
    if (t->mode == BOUND) {
        if (t->depth == MAX_DEPTH) die("grammar: MAX_DEPTH is too small");
        t->turns[t->depth] = n;
        pick = offered[t->turn[t->depth++]];
    } else if (t->mode == GENERATE) {
        int ticket = (int)random_below(&t->random, (uint64_t)total);
        for (int i = 0; i < n && pick < 0; i++)
            if ((ticket -= options[offered[i]].weight) < 0) pick = offered[i];
    } else {
        for (int i = 0; i < n; i++)
            if (input_starts(t, head[i])) pick = offered[i];
        if (pick < 0) t->failed = 1;
        if (t->failed) return 0;
    }
    if (t->mode != BOUND) choice_record(t, pick, options[pick].weight, total);
    tale_say(t, options[pick].text);
    return pick;
}
#define BRANCH(t, ...)                                                                             \
    tale_branch(t, (const Option[]){__VA_ARGS__},                                                  \
                (int)(sizeof((const Option[]){__VA_ARGS__}) / sizeof(Option)))

// Binds without saying: a number that follows from others, or the word of another slot.
static void number_bind(Tale *t, char slot, int value) {
    const List *numbers = &t->lexicon->lists[0];
    if (t->failed) return;
    if (t->mode == BOUND) slot_bind(t, slot, &numbers->widest, 12);
    else if (value < 1 || value > numbers->count) die("grammar: no word for %d", value);
    else slot_bind(t, slot, &numbers->words[value - 1], value);
}
static void slot_copy(Tale *t, char to, char from) {
    if (!t->failed) slot_bind(t, to, slot_word(t, from), t->value[from - 'A']);
}
static int slot_value(const Tale *t, char slot) { return t->value[slot - 'A']; }
static int slot_bound(const Tale *t, char slot) { return t->slot[slot - 'A'] != NULL; }
// Whether the number is in low..high; the proof of the bound has to see both cases, so there it may
// always be.
static int slot_between(const Tale *t, char slot, int low, int high) {
    return t->mode == BOUND || (slot_value(t, slot) >= low && slot_value(t, slot) <= high);
}

// ---------------------------------------------------------------------------------------------------------------------
// 4. Grammar

// Templates are text with draws, <...> (draw_expand), and references, $Xf (head_expand,
// word_format). A story is an opening, one of the plots, and a closing. Slots that all parts know:
// H the hero, P the place of the opening, M the hero's mood, L the food the hero loves. All other
// letters belong to the plot.
static const Option OPENINGS[] = {
    {6, "One <weather> <time>, <trait> <name=H> <motion> to the <place=P>."},
    {4, "Once there was <trait:a>"}, // goes on: girl or boy, which decides among the names
    {4, "Near the <place=P> lived <trait:a> <role> named <name=H>."},
    {3, "Last <day>, <trait> <name=H> was <mood=M>."},
    {3, "Little <name=H> loved <food:p=L>."},
    {3, "In <month>, <trait> <name=H> <motion> to the <look> <place=P>."},
    {3, "Every <day>, <trait> <name=H> <activity>."},
};

// Ends the story, or goes on with one of `more` and returns its index; -1 after the end. Offering
// both at one branch makes a sentence optional without an empty option, which no reader could
// decide.
static int tale_close(Tale *t, int brief, const Option *more, int count) {
    const Option closings[] = {
        {8, "\n"},
        {1, " The end.\n"},
        {6, " Then $Hh <activity>.\n"},
        {4, " $HH was <mood>.\n"},
        {4, " $HH went home <way>.\n"},
        {slot_bound(t, 'M') ? 8 : 0, " No longer was $Hh $Mn.\n"},
        {slot_bound(t, 'P') ? 4 : 0, " $HH left the $Pn <way>.\n"},
        {slot_bound(t, 'L') ? 8 : 0, " For supper $Hh had <2-6> $Lp.\n"},
        {brief ? 0 : 6, " At last $Hh <said>, \"<exclaim>!\"\n"},
        {brief || !slot_bound(t, 'F') ? 0 : 6, " After that they all <activity>.\n"},
    };
    Option all[MAX_BRANCH];
    if (count > 0) memcpy(all, more, (size_t)count * sizeof *all);
    memcpy(all + count, closings, sizeof closings);
    int pick = tale_branch(t, all, count + COUNT(closings));
    return pick < count ? pick : -1;
}
#define CLOSE(t, ...)                                                                              \
    tale_close(t, 1, (const Option[]){__VA_ARGS__},                                                \
               (int)(sizeof((const Option[]){__VA_ARGS__}) / sizeof(Option)))
static void tale_finish(Tale *t) { tale_close(t, 0, NULL, 0); }
static void tale_finish_brief(Tale *t) { tale_close(t, 1, NULL, 0); }

// The hero has A of T; one or two events change A, and only the end says what it is now.
static void plot_count(Tale *t) {
    if (!slot_bound(t, 'T')) slot_copy(t, 'T', 'L');
    for (int round = 0; round < 3; round++) {
        int loss = round < 2 && slot_between(t, 'A', 2, 12),
            gain = round < 2 && slot_between(t, 'A', 1, 9), end = round > 0;
        int event = BRANCH(
            t, {3 * loss, " $HH gave <1-A=B> to <trait> <name=F>."},
            {3 * loss, " $HH ate <1-A=B>."}, {3 * loss, " But <trait:a> <animal> took <1-A=B>."},
            {3 * gain, " $HH found <1-3=B> more."},
            {3 * gain, " Then <trait> <name=F> gave $Hm <1-3=B>."}, {4 * end, " Now $Hn had $Aq."},
            {2 * end, " How many $Tp were there now? $AN."},
            {(slot_bound(t, 'F') ? 3 : 0) * end, " \"You have $Aq,\" <said> $Fn."},
            {3 * end * slot_between(t, 'A', 2, 5), " $HH counted them: one, two"});
        if (event < 3) number_bind(t, 'A', slot_value(t, 'A') - slot_value(t, 'B'));
        else if (event < 5) number_bind(t, 'A', slot_value(t, 'A') + slot_value(t, 'B'));
        else {
            int last = t->mode == BOUND ? 5 : slot_value(t, 'A');
            static const char *const TAIL[] = {
                "", "", ".", ", three.", ", three, four.", ", three, four, five."};
            if (event == 8) tale_say(t, TAIL[last]);
            break;
        }
    }
    tale_finish(t);
}

// A thing is put in one place; if it was moved, the hero, who was away, still looks there.
static void plot_hide(Tale *t) {
    if (BRANCH(t, {4, " Then <name=F> hid it <spot=V>."},
               {3, " At night <trait:a> <animal> put it <spot=V>."}, {2, " Nobody moved it."}) == 2)
        BRANCH(t, {2, " Later $Hh looked $Sn, and there was the $Cn $Tn."},
               {1, " Where was the $Tn? Still $Sn."});
    else
        BRANCH(
            t, {4, " $HH looked $Sn, but it was $Vn."}, {2, " Where was the $Tn now? $VN."},
            {2, " Where did $Hn look for the $Cn $Tn? $SN."},
            {slot_bound(t, 'F') ? 3 : 0, " \"Where is my $Tn?\" asked $Hn. \"$VN,\" <said> $Fn."});
    tale_finish_brief(t);
}

// Three things; two are given away. Who has which?
static void plot_market(Tale *t) {
    static const char *const OWNERS[] = {"FGH", "HFG", "GHF"}; // of T, U, V
    int kept = BRANCH(
        t, {2, " $HH gave the $Tn to <name=F> and the $Un to <name=G>, but kept the $Cn $Vn."},
        {1, " $HH gave the $Un to <name=F> and the $Cn $Vn to <name=G>, but kept the $Tn."},
        {1, " $HH gave the $Cn $Vn to <name=F> and the $Tn to <name=G>, but kept the $Un."});
    for (int i = 0; i < 3; i++) slot_copy(t, "IJK"[i], OWNERS[kept][i]);
    if (CLOSE(t, {9, " Who had the $Tn? $In."}, {9, " Who had the $Un? $Jn."},
              {9, " Who had the $Vn? $Kn."}) >= 0)
        tale_say(t, "\n");
}

static void plot_swap(Tale *t) {
    BRANCH(t, {4, " They swapped, so now $Hn had the $Un and $Fn the $Tn."},
           {2, " They would not swap, so $Hn kept the $Cn $Tn and $Fn the $Un."},
           {2, " Both were sold to <trait> <name=G>, who now had the $Tn and the $Un."},
           {2, " Then $Fn lost the $Un, so $Hn shared the $Cn $Tn with $Fm."});
    tale_finish_brief(t);
}

static void plot_sum(Tale *t) {
    number_bind(t, 'C', slot_value(t, 'A') + slot_value(t, 'B'));
    BRANCH(t, {4, " \"$AN and $Bn make $Cn,\" <said> $Hn."}, {3, " That made $Cq."},
           {3, " \"How many $Tp?\" asked <trait> <name=F>. \"$CN,\" <said> $Hn."});
    CLOSE(t, {12, " All $Cn $Ts <adverb>.\n"}, {8, " One of the $Cn $Tp was <mood>.\n"});
}

static void plot_lost(Tale *t) {
    if (BRANCH(t, {4, " $HH looked $Sn, and there was the $Cn $Tn."},
               {3, " It was not $Sn. \"No, <spot>!\" There it was."},
               {3, " But $Sn was only <thing:a>. The $Tn was <spot>."}) == 1)
        CLOSE(t, {12, " \"<exclaim>!\" <said> $Hn.\n"});
    else tale_finish_brief(t);
}

// A nested clause: X did K to Y, and Y had eaten T.
static void plot_chain(Tale *t) {
    if (CLOSE(t, {9, " The $Xn $Xs <adverb>, and the $Yn $Ys <adverb>."},
              {8, " Who $Kn the $Yn? The $Qn $Xn."}, {8, " Who ate the $Tn? The $Rn $Yn."},
              {4, " Who saw the $Xn? $Hn."}) >= 0)
        tale_finish_brief(t);
}

// Two comparisons order three people: X above Y above Z.
static void plot_compare(Tale *t) {
    int above = BRANCH(t, {1, " and $Fn was $Kn than <trait> <name=G>."},
                       {1, " but <trait> <name=G> was $Kn than $Hn."});
    slot_copy(t, 'X', above ? 'G' : 'H');
    slot_copy(t, 'Z', above ? 'F' : 'G');
    BRANCH(t, {3, " So $Xn was the $Kp and $Zn was the $Ks."}, {2, " Who was the $Kp? $Xn."},
           {2, " Who was the $Ks? $Zn."});
    CLOSE(t, {8, " That made $Zn <mood>.\n"}, {8, " $Xn was <mood>, but $Zn was <mood>.\n"});
}

static void plot_pet(Tale *t) {
    int fed =
        !BRANCH(t, {3, " It was <mood>, so $Hn gave it <food:a=T>."},
                {3, " It had <look:a> nose and $Xs <adverb>."}, {2, " \"<exclaim>!\" <said> $Hn."});
    tale_say(t, " $HH called it <pet=Z>.");
    if (fed)
        BRANCH(t, {2, " $Zn ate the $Tn and $Xs."}, {1, " The $Tn was soon gone, and $Zn $Xs."});
    else
        BRANCH(t, {1, " Every night $Zn $Xs <spot>."},
               {1, " \"$ZN!\" $Hh <said>, and the $Qn $Xn $Xs."});
    tale_finish_brief(t);
}

// What F says in the first person is told in the third.
static void plot_report(Tale *t) {
    BRANCH(t, {4, " $HH told <name=G> that $Fn had $Kn $Fr $Tn $Xp."},
           {3, " \"Where?\" asked $Hn. \"$XP,\" <said> $Fn."},
           {3, " \"Which $Tn?\" asked $Hn. \"The $Cn one,\" <said> $Fn."},
           {2, " \"$Fn $Kn $Fr $Tn,\" $Hn told <name=G>. \"It was $Cn.\""});
    tale_finish_brief(t);
}

static void plot_race(Tale *t) {
    int first = BRANCH(t, {1, " $Hn came first"}, {1, " $Fn came first"}, {1, " $Gn came first"});
    for (int i = 0; i < 3; i++) slot_copy(t, "XYZ"[i], "HFG"[(first + i) % 3]);
    BRANCH(t, {1, " and $Yn came last, so $Zn was second."},
           {1, " and $Zn came last, so $Yn was second."}, {1, ", then $Yn, then $Zn."},
           {1, ", then $Zn, then $Yn."});
    CLOSE(t, {12, " $Xn won <look:a> <thing> and <look:a> <thing>.\n"},
          {8, " $Xn was <mood>, and so was $Zn.\n"});
}

static void plot_boxes(Tale *t) {
    BRANCH(t, {4, " $HH put the $Zn in the $Yn and the $Yn in the $Xn."},
           {3, " \"Whose is this?\" $Hh <said>. \"Mine!\" <said> <trait> <name=F>."},
           {3, " $HH gave the $Yn to <name=F> and the $Xn to <name=G>."});
    CLOSE(t, {8, " What was in the $Yn? The $Zn.\n"}, {8, " Where was the $Yn? In the $Xn.\n"});
}

static void plot_likes(Tale *t) {
    BRANCH(t, {4, " The <role> brought both, so $Hn ate the $Tn and $Fn the $Un."},
           {3, " \"Who wants <1-6=A> $Tp?\" asked the <role>. \"I do!\" <said> $Hn."},
           {3, " \"Take this $Un,\" <said> the <role>, and gave it to $Fn."});
    tale_finish_brief(t);
}

static void plot_chores(Tale *t) {
    BRANCH(t, {3, " Last of all $Hh <did> the <look> <thing>."},
           {2, " Then <trait> <name=F> <did> the <look> <thing>."});
    CLOSE(t, {8, " What was $Jn? The $Cn $Tn.\n"}, {8, " What was $Kn? The $Dn $Un.\n"});
}

// What a plot says first; these heads decide which plot it is. `needs` is a slot that the opening
// must have bound.
typedef struct Plot {
    int weight;
    char needs;
    const char *text;
    void (*tell)(Tale *);
} Plot;

static const Plot PLOTS[] = {
    {6, 0, " $HH had <2-9=A> <food:p=T>.", plot_count},
    {9, 'L', " On $Hr table lay <2-9=A> $Lp.", plot_count},
    {6, 0, " $HH put <look:a=C> <thing=T> <spot=S>.", plot_hide},
    {6, 0, " $HH bought <thing:a=T>, <thing:a=U> and <look:a=C> <thing=V>.", plot_market},
    {5, 0, " $HH owned <look:a=C> <thing=T>, and <trait> <name=F> owned <look:a> <thing=U>.",
     plot_swap},
    {5, 0, " $HH counted <2-6=A> <animal:p=T> <place:p=X> and <2-6=B> <place:p=Y>.", plot_sum},
    {5, 0, " \"Where is my <look=C> <thing=T>?\" asked $Hn. \"Look <spot=S>,\" said <name=F>.",
     plot_lost},
    {5, 0,
     " $HH saw <trait:a=Q> <animal=X> that <chased=K> <trait:a=R> <animal=Y> that had eaten "
     "<food:a=T>.",
     plot_chain},
    {5, 0, " $HH was <more=K> than <trait> <name=F>,", plot_compare},
    {5, 0, " $HH met <trait:a=Q> <animal=X>.", plot_pet},
    {5, 0,
     " Along came <trait> <name=F>. \"I <lost=K> my <look=C> <thing=T> <place:p=X>,\" $Fh <said>.",
     plot_report},
    {4, 0, " $HH ran a race with <trait> <name=F> and <trait> <name=G>.", plot_race},
    {4, 0,
     " $HH opened <look:a=C> <vessel=X>. Inside was <look:a> <vessel=Y>, in that <look:a> "
     "<thing=Z>.",
     plot_boxes},
    {5, 0, " $HH liked <food:p=T> but not <food:p=U>, and <name=F> liked $Up but not $Tp.",
     plot_likes},
    {4, 0, " First $Hh <did=J> the <look=C> <thing=T>, then $Hh <did=K> the <look=D> <thing=U>.",
     plot_chores},
};

static void tale_tell(Tale *t) {
    Option plots[MAX_BRANCH];
    if (tale_branch(t, OPENINGS, COUNT(OPENINGS)) == 1)
        BRANCH(t, {1, " girl named <name?f=H>."}, {1, " boy named <name?m=H>."});
    for (int i = 0; i < COUNT(PLOTS); i++) {
        plots[i].weight = !PLOTS[i].needs || slot_bound(t, PLOTS[i].needs) ? PLOTS[i].weight : 0;
        plots[i].text = PLOTS[i].text;
    }
    PLOTS[tale_branch(t, plots, COUNT(PLOTS))].tell(t);
}

// Every way to run the grammar starts here. The stories of a stream are numbered: each has its own
// generator.
static void tale_start(Tale *t, const Lexicon *lexicon, Mode mode) {
    memset(t, 0, sizeof *t);
    t->lexicon = lexicon;
    t->mode = mode;
    t->digest = FNV_START;
}

static void tale_generate(Tale *t, const Lexicon *lexicon, uint64_t seed, uint64_t stream,
                          uint64_t index) {
    tale_start(t, lexicon, GENERATE);
    uint64_t key = seed;
    key = random_u64(&key) ^ stream;
    key = random_u64(&key) ^ index;
    t->random = random_u64(&key);
    tale_tell(t);
}

// Returns 1 if the bytes are one story of the grammar, all of them; t then has its choices and its
// surprisal.
static int tale_parse(Tale *t, const Lexicon *lexicon, const char *input, size_t length) {
    tale_start(t, lexicon, PARSE);
    t->input = input;
    t->input_length = length;
    tale_tell(t);
    return !t->failed && t->length == length;
}

// ---------------------------------------------------------------------------------------------------------------------
// 5. Corpus

enum {
    STREAM_TRAIN,
    STREAM_VAL,
    STREAM_TEST
}; // stories of different streams are drawn independently

typedef struct Config {
    const char *out;
    size_t megabytes, val_stories;
    uint64_t seed;
} Config;

typedef struct Corpus {
    char *text;   // the stories, back to back, and a final 0
    double *nats; // (the number of stories asked for) surprisal of each
    size_t stories, bytes, longest;
    double total; // nats of all stories
} Corpus;

// Draws stories 0, 1, 2 ... of a stream until there are at least so many of them and so many bytes.
static Corpus corpus_draw(const Lexicon *lexicon, uint64_t seed, uint64_t stream, size_t stories,
                          size_t bytes) {
    Corpus c = {malloc(bytes + (stories + 1) * TALE_MAX),
                malloc((stories + 1) * sizeof(double)),
                0,
                0,
                0,
                0};
    if (!c.text || !c.nats) die("no memory for %zu bytes and %zu stories", bytes, stories);
    for (Tale t; c.stories < stories || c.bytes < bytes; c.stories++) {
        tale_generate(&t, lexicon, seed, stream, c.stories);
        memcpy(c.text + c.bytes, t.text, t.length + 1);
        if (c.stories < stories) c.nats[c.stories] = t.nats;
        if (t.length > c.longest) c.longest = t.length;
        c.bytes += t.length;
        c.total += t.nats;
    }
    return c;
}

static void corpus_print(const char *name, const Corpus *c) {
    printf(
        "%-9s %9zu bytes, %6zu stories, mean %.1f, longest %zu bytes, floor %.6f nats per byte\n",
        name, c->bytes, c->stories, (double)c->bytes / (double)c->stories, c->longest,
        c->total / (double)c->bytes);
}

// The distinct words of a text, in lower case, told apart by a hash of their letters.
static int words_count(const char *text) {
    uint64_t seen[8192] = {0},
             hash = FNV_START; // open addressing, 0 is free; the lexicon fills an eighth of it
    int count = 0;
    for (; *text; text++) {
        char lower = (char)(*text | 32);
        if (is_letter(*text)) hash = fnv1a64(hash, &lower, 1);
        else if (hash != FNV_START) {
            size_t i = hash % 8192;
            while (seen[i] && seen[i] != hash) i = (i + 1) % 8192;
            count += !seen[i];
            seen[i] = hash;
            hash = FNV_START;
        }
    }
    return count;
}

// The sidecar is the same bytes whenever the validation stories are, so it also tells whether a
// folder is up to date.
static char *sidecar_write(const Config *config, const Corpus *val) {
    size_t room = 1024 + 64 * val->stories, n, offset = 0;
    char *text = malloc(room);
    if (!text) die("no memory for the sidecar");
    n = (size_t)snprintf(
        text, room,
        "# generator\t" GENERATOR "\n# seed\t%" PRIu64
        "\n# megabytes\t%zu\n# stories\t%zu\n# bytes\t%zu\n"
        "# fnv1a64\t%016" PRIx64 "\n# nats\t%.9f\n# nats_per_byte\t%.9f\noffset\tbytes\tnats\n",
        config->seed, config->megabytes, val->stories, val->bytes,
        fnv1a64(FNV_START, val->text, val->bytes), val->total, val->total / (double)val->bytes);
    for (size_t i = 0; i < val->stories; i++) {
        size_t bytes = strcspn(val->text + offset, "\n") + 1;
        n += (size_t)snprintf(text + n, room - n, "%zu\t%zu\t%.9f\n", offset, bytes, val->nats[i]);
        offset += bytes;
    }
    return text;
}

// Readers never see half a file: it gets its name when it is complete.
static void file_save(const char *folder, const char *name, const char *text, size_t n) {
    char path[4096], temporary[4096 + 8];
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        die("--out is too long");
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    remove(temporary); // never followed: it may be a link
    FILE *file = fopen(temporary, "wbx");
    if (!file) die("cannot write %s: %s", temporary, strerror(errno));
    size_t written = fwrite(text, 1, n, file);
    if (fclose(file) || written != n) die("cannot write %s", temporary);
    if (rename(temporary, path)) die("cannot rename %s: %s", temporary, strerror(errno));
}

// Whether the file holds exactly these bytes.
static int file_holds(const char *folder, const char *name, const char *text, size_t n) {
    char path[4096], block[4096];
    size_t at = 0, got = 1;
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        die("--out is too long");
    FILE *file = fopen(path, "rb");
    if (!file) return 0;
    while ((got = fread(block, 1, sizeof block, file)) > 0 && at + got <= n &&
           !memcmp(block, text + at, got))
        at += got;
    fclose(file);
    return got == 0 && at == n;
}

static void corpus_write(const Config *config) {
    Lexicon *lexicon = lexicon_build(LISTS, COUNT(LISTS));
    Corpus train = corpus_draw(lexicon, config->seed, STREAM_TRAIN, 0, config->megabytes * 1000000);
    Corpus val = corpus_draw(lexicon, config->seed, STREAM_VAL, config->val_stories, 0);
    char *sidecar = sidecar_write(config, &val), *story = val.text;
    struct {
        const char *name, *text;
        size_t bytes;
    } files[] = {{"train.txt", train.text, train.bytes},
                 {"val.txt", val.text, val.bytes},
                 {"val.floor.tsv", sidecar, strlen(sidecar)}};
    int held = 0;
    if (mkdir(config->out, 0777) && errno != EEXIST)
        die("cannot make %s: %s", config->out, strerror(errno));
    for (int i = 0; i < 3; i++)
        held += file_holds(config->out, files[i].name, files[i].text, files[i].bytes);
    if (held == 3)
        printf("%s is up to date (%s, seed %" PRIu64 ")\n", config->out, GENERATOR, config->seed);
    for (int i = 0; held < 3 && i < 3; i++)
        file_save(config->out, files[i].name, files[i].text, files[i].bytes);
    corpus_print("train.txt", &train);
    corpus_print("val.txt", &val);
    printf("%d distinct words\n", words_count(train.text));
    for (size_t i = 0; i < 3 && i < val.stories; i++, story += strcspn(story, "\n") + 1)
        printf("  %.*s\n", (int)strcspn(story, "\n"), story);
    free(train.text), free(train.nats), free(val.text), free(val.nats), free(sidecar),
        free(lexicon);
}

// ---------------------------------------------------------------------------------------------------------------------
// 6. Self-test

#define TEST_STORIES 20000
// What the first 1000 validation stories of seed 1 hash to, on every machine.
#define TEST_TEXT      0xe894913ac69f7b3dull
#define TEST_MICRONATS 43596442054ull

typedef struct Checks {
    int passed, failed;
} Checks;

static void check(Checks *checks, int ok, const char *format, ...) {
    va_list args;
    va_start(args, format);
    printf("%s ", ok ? "ok  " : "FAIL");
    vprintf(format, args);
    putchar('\n');
    va_end(args);
    *(ok ? &checks->passed : &checks->failed) += 1;
}

// Chi-square within five of its standard deviations, sqrt(2 (n - 1)), of its mean n - 1.
static int frequencies_fit(const int *seen, const int *weight, int n) {
    double draws = 0, total = 0, chi = 0;
    for (int i = 0; i < n; i++) draws += seen[i], total += weight[i];
    for (int i = 0; i < n; i++) {
        double expected = draws * weight[i] / total;
        if (expected > 0) chi += (seen[i] - expected) * (seen[i] - expected) / expected;
        else if (seen[i]) return 0;
    }
    return chi < n - 1 || (chi - (n - 1)) * (chi - (n - 1)) < 50.0 * (n - 1);
}

static void test_numbers(Checks *checks, const Lexicon *lexicon) {
    static const double X[] = {1, 2, 3, 10, 1e6, 0.7};
    static const double LN_X[] = {0,
                                  0.69314718055994530942,
                                  1.0986122886681098,
                                  2.302585092994046,
                                  13.815510557964274,
                                  -0.35667494393873245};
    int good = 1, seen[64] = {0}, weight[64], total = 0, exact = 1;
    for (int i = 0; i < COUNT(X); i++) {
        double error = ln(X[i]) - LN_X[i];
        good &= error * error <= 16e-32 * LN_X[i] * LN_X[i];
    }
    check(checks, good, "ln agrees with %d known constants to two units in the last place",
          COUNT(X));

    uint64_t state = 7;
    good = 1;
    for (int n = 2; n <= 60; n += n / 2) {
        memset(seen, 0, sizeof seen);
        for (int i = 0; i < n; i++) weight[i] = 1;
        for (int i = 0; i < 50000; i++) seen[random_below(&state, (uint64_t)n)]++;
        good &= frequencies_fit(seen, weight, n);
    }
    check(checks, good, "the integer sampler is uniform");

    // One word is used up: the others must share its weight, and the surprisal must know it.
    Tale t;
    tale_start(&t, lexicon, GENERATE);
    const List *pets = list_find(&t, "pet", 3);
    memset(seen, 0, sizeof seen);
    for (int i = 0; i < pets->count; i++) total += weight[i] = i == 2 ? 0 : pets->words[i].weight;
    for (int i = 0; i < 100000; i++) {
        tale_start(&t, lexicon, GENERATE);
        t.random = random_u64(&state);
        t.used[&pets->words[2] - lexicon->words] = 1;
        tale_say(&t, "<pet=A>");
        int pick = slot_value(&t, 'A') - 1;
        seen[pick]++;
        exact &= t.nats == ln((double)total / weight[pick]);
    }
    check(checks, exact && frequencies_fit(seen, weight, pets->count),
          "words come with their weights, renormalised");
    for (int i = 0; i < pets->count; i++) weight[i] = 1;
    check(checks, !frequencies_fit(seen, weight, pets->count),
          "planted fault: equal weights do not fit");

    static const Option BRANCHES[] = {{1, "a <pet>"}, {0, "b"}, {2, "c"}, {7, "d"}};
    memset(seen, 0, sizeof seen);
    for (int i = 0; i < COUNT(BRANCHES); i++) weight[i] = BRANCHES[i].weight;
    for (int i = 0; i < 100000; i++) {
        tale_start(&t, lexicon, GENERATE);
        t.random = random_u64(&state);
        seen[tale_branch(&t, BRANCHES, COUNT(BRANCHES))]++;
    }
    check(checks, frequencies_fit(seen, weight, COUNT(BRANCHES)),
          "branches come with their weights");
}

static void test_grammar(Checks *checks, const Lexicon *lexicon) {
    int ambiguous = 0;
    for (int i = 0; i < lexicon->list_count; i++)
        ambiguous += list_ambiguity(&lexicon->lists[i]) != NULL;
    check(checks, !ambiguous, "the words of each of %d lists are prefix-free", lexicon->list_count);
    static const ListSource PLANTED[] = {{"planted", "egg,eggplant,egg cup"}};
    Lexicon *planted = lexicon_build(PLANTED, 1);
    check(checks, list_ambiguity(&planted->lists[0]) != NULL,
          "planted fault: \"egg\" and \"egg cup\" are not");
    free(planted);

    // All branches, each with the widest words: counts through the turns like an odometer.
    Tale t;
    int turn[MAX_DEPTH] = {0}, depth;
    size_t widest = 0, paths = 0;
    do {
        tale_start(&t, lexicon, BOUND);
        memcpy(t.turn, turn, sizeof turn);
        tale_tell(&t);
        if (t.length > widest) widest = t.length;
        paths++;
        for (depth = t.depth - 1; depth >= 0 && ++turn[depth] == t.turns[depth]; depth--)
            turn[depth] = 0;
    } while (depth >= 0);
    check(checks, widest < TALE_MAX, "no story of the %zu paths can be longer than %zu bytes",
          paths, widest);
}

static void test_stories(Checks *checks, const Lexicon *lexicon) {
    int same = 0, fit = 0, caught = 0, stories = 0, cut = 0, reweighed = 0;
    double sum[2] = {0, 0}, square[2] = {0, 0}, half = TEST_STORIES / 2, variance = 0;
    size_t longest = 0, shortest = TALE_MAX;
    uint64_t random = 11;
    Lexicon *planted = lexicon_build(LISTS, COUNT(LISTS));
    for (int i = 0; i < planted->word_count; i += 50) planted->words[i].weight++;
    Tale t, parsed;
    for (int i = 0; i < TEST_STORIES; i++) {
        tale_generate(&t, lexicon, 1, STREAM_TEST, (uint64_t)i);
        fit += t.length < TALE_MAX && strcspn(t.text, "\n") + 1 == t.length &&
               strlen(t.text) == t.length;
        if (t.length > longest) longest = t.length;
        if (t.length < shortest) shortest = t.length;
        double rate = t.nats / (double)t.length;
        sum[i % 2] += rate, square[i % 2] += rate * rate;

        same += tale_parse(&parsed, lexicon, t.text, t.length) &&
                !memcmp(&parsed.nats, &t.nats, sizeof t.nats) && parsed.choices == t.choices &&
                parsed.digest == t.digest;
        reweighed += tale_parse(&parsed, planted, t.text, t.length) && parsed.nats != t.nats;
        cut += !tale_parse(&parsed, lexicon, t.text, random_below(&random, t.length));
        char mutant[TALE_MAX];
        memcpy(mutant, t.text, t.length + 1);
        size_t at = random_below(&random, t.length);
        while (mutant[at] == t.text[at]) mutant[at] = (char)random_below(&random, 128);
        int story = tale_parse(&parsed, lexicon, mutant, t.length);
        caught += !story || parsed.digest != t.digest;
        stories += story;
    }
    check(checks, same == TEST_STORIES, "%d of %d stories parse to the same choices and surprisal",
          same, TEST_STORIES);
    check(checks, fit == TEST_STORIES, "%d stories have %zu to %zu bytes", fit, shortest, longest);
    check(checks, caught == TEST_STORIES, "%d with a byte changed are no stories, or others (%d)",
          caught, stories);
    check(checks, cut == TEST_STORIES, "%d cut short are no stories", cut);
    check(checks, reweighed > TEST_STORIES / 2,
          "planted fault: other weights give %d other surprisals", reweighed);
    for (int i = 0; i < 2; i++)
        variance += (square[i] / half - sum[i] / half * (sum[i] / half)) / half;
    double gap = (sum[0] - sum[1]) / half; // within four standard errors
    check(checks, gap * gap < 16 * variance, "two halves have %.5f and %.5f nats per byte",
          sum[0] / half, sum[1] / half);
    free(planted);

    Corpus val = corpus_draw(lexicon, 1, STREAM_VAL, 1000, 0);
    uint64_t hash = fnv1a64(FNV_START, val.text, val.bytes);
    check(checks, hash == TEST_TEXT, "the first 1000 stories of seed 1 have the hash %016" PRIx64,
          hash);
    check(checks, (uint64_t)(val.total * 1e6 + 0.5) == TEST_MICRONATS, "and %.6f nats", val.total);
    free(val.text), free(val.nats);
}

static int selftest(void) {
    Checks checks = {0, 0};
    Lexicon *lexicon = lexicon_build(LISTS, COUNT(LISTS));
    test_numbers(&checks, lexicon);
    test_grammar(&checks, lexicon);
    test_stories(&checks, lexicon);
    free(lexicon);
    printf("%d passed, %d failed\n", checks.passed, checks.failed);
    return checks.failed > 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// 7. Options and main

// One table for the parser and for the usage text.
static const struct {
    const char *name, *argument, *help;
} OPTIONS[] = {
    {"out", "DIR", "directory to write into, made if missing (data/tales.d)"},
    {"megabytes", "N", "size of train.txt in millions of bytes, rounded up to a whole story (4)"},
    {"val-stories", "N", "stories in val.txt (2000)"},
    {"seed", "S", "seed of all streams (1)"},
    {"selftest", NULL, "check the grammar, the parser, the sampler and the bound; write nothing"},
    {"help", NULL, "this text"},
};

static uint64_t number_parse(const char *name, const char *text, uint64_t low, uint64_t high) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || value < low || value > high)
        die("--%s takes a number from %" PRIu64 " to %" PRIu64 ", not \"%s\"", name, low, high,
            text);
    return value;
}

int main(int argc, char **argv) {
    Config config = {"data/tales.d", 4, 2000, 1};
    signal(SIGXFSZ, SIG_IGN); // a limit on the size of files is then an error like any other
    struct option table[COUNT(OPTIONS) + 1] = {{0}};
    int test = 0, choice, at = -1;
    for (int i = 0; i < COUNT(OPTIONS); i++) {
        table[i].name = OPTIONS[i].name;
        table[i].has_arg = OPTIONS[i].argument ? required_argument : no_argument;
    }
    while ((choice = getopt_long(argc, argv, "", table, &at)) != -1) {
        if (choice) return 2; // getopt_long has said what is wrong
        switch (at) {
        case 0: config.out = optarg; break;
        case 1: config.megabytes = number_parse("megabytes", optarg, 1, 1000); break;
        case 2: config.val_stories = number_parse("val-stories", optarg, 1, 1000000); break;
        case 3: config.seed = number_parse("seed", optarg, 0, UINT64_MAX); break;
        case 4: test = 1; break;
        default:
            puts("usage: tales [options]\nWrites train.txt, val.txt and val.floor.tsv: small "
                 "stories of known "
                 "probability.");
            for (int i = 0; i < COUNT(OPTIONS); i++)
                printf("  --%-11s %-4s %s\n", OPTIONS[i].name,
                       OPTIONS[i].argument ? OPTIONS[i].argument : "", OPTIONS[i].help);
            return 0;
        }
    }
    if (optind < argc) die("unexpected argument \"%s\"; see --help", argv[optind]);
    if (!config.out[0]) die("--out is empty");
    if (test) return selftest();
    corpus_write(&config);
    return 0;
}
