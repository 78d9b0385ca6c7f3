"""The words of the generated demo catalogue: names, titles and sentence templates (subjects: demo_subjects.py).

Everything here was written for this project; persons, places, clubs and journals are fictional.
Slots of the templates are filled by `demo.py`.
"""

PLACES = """
Harrowmere, Port Elsin, Castle Dunning, Vellabrook, Saint Orlin, Marrowgate, Tilsworth, Kestrel Bay, Lower Ansby,
Brandholt, Ostervik, Fennimore, Quillham, Alderpoint, Grevesand, Monte Caldo, Rookhaven, Thornaby Cross, Lindefjord,
Sablewick, Corrie Vale, Pellingford, Duskwater, Arnsbury, Villaverna, Hexley, Nordhaven, Wrenfield, Cap Morel,
Stavenholm, Underhill, Bellmarsh, Oxlow, Casterly Sound, Tarnbeck, Ilmenau Heights, Redmarsh, Salt Quay, Whitcombe,
Easterlund, Penmorrow, Garrick Green, Larkstead, Ravenna Falls, Moorhouse, Highbarrow, Clunefoot, Sandrigo, Elderwick,
Two Rivers
"""

FIRST_NAMES = """
Ada, Bram, Celia, Dario, Edda, Farid, Greta, Hanno, Imani, Jory, Keiko, Luca, Mirren, Nadia, Oskar, Priya, Quentin,
Rosa, Stellan, Tamsin, Ulla, Vikram, Wanda, Xavier, Yara, Zeno, Anouk, Benedikt, Chiara, Dunstan, Elif, Fergus,
Ginevra, Hana, Ivo, Jasmin, Kofi, Linnea, Marek, Noor
"""

SURNAMES = """
Ashgrove, Bellweather, Castellane, Dornfeld, Ellerby, Fairlamb, Gorsedd, Halvorsen-Reed, Iwanaga-Holt, Jessamy,
Kilbracken, Lorimer-Vane, Mossgrave, Nightingale-Roe, Oduya-Marsh, Pemberlake, Quarrington, Rathmore, Silverthorn,
Tregarrow, Umberfield, Vasquez-Thorne, Winterbourne-Lee, Yarrowdale, Zellweg, Abernoth, Brightwater, Coldharbour,
Drummondale, Estermann, Fennick, Greycastle, Hollowell, Ingersby, Karanth-Wood, Larkspur, Merriden, Northcott-Bay,
Oakhanger, Pascoe-Lind
"""

# Titles that suit any subject; `things` and `things2` are plural, `topic` is singular.
TITLES = (
    "{Things} and {things2}: the {season} of {topic} in {place}",
    "Why {agents} in {place} swear by {things}",
    "The {agent} who brought {things} back to {place}",
    "{Topic}: what {n} {agents} would tell a beginner",
    "A beginner's guide to {topic}, from {things} to {things2}",
    "{person} on {things} and the quiet joy of {topic}",
    "In praise of {things}",
    "{Things}: {n} questions, answered by {a_agent}",
    "Inside {place}, the unlikely home of {topic}",
    "{n} {things} that changed the way we see {topic}",
    "What {agents} get wrong about {things}",
    "{place} falls for {topic}",
    "The trouble with {things}",
    "How {person} learned to love {things}",
    "Forget {things2}: this {season} belongs to {things}",
    "A day with {a_agent} in {place}",
    "{Things} for everyone: {topic} without the fuss",
    "The long return of {things}",
    "{person}, {agent}: 'I still dream of {things}'",
    "Letter from {place}: {things} under a {weather} sky",
)

# Titles in the style of their category.
CATEGORY_TITLES = {
    "sports": (
        "{place} stun the favourites as {things} decide the {season} {event}",
        "{person} takes the {place} {event} title after a season of {things}",
        "{Topic}: {place} prepares for its biggest {event} yet",
        "Record crowd in {place} for {topic}",
    ),
    "food": (
        "Our {n} favourite {things} in {place}",
        "{Things}, step by step: a recipe from {person}",
        "The {place} kitchen where {things} meet {things2}",
        "Tested: the best {things} for {season}",
    ),
    "travel": (
        "{n} days in {place} for lovers of {topic}",
        "{place} beyond the postcards: {things} and {things2}",
        "Slow {season}: {topic} from {place} to {place2}",
        "The {weather} road to {place}, by way of {things}",
    ),
    "science": (
        "New study from {place} rethinks {things}",
        "{Things} surprise {agents} in {place}",
        "The puzzle of {things}, and how {topic} may solve it",
        "{person} wins the {place} medal for work on {topic}",
    ),
    "technology": (
        "Review: {things} that finally work",
        "{place} bets on {topic}",
        "We lived with {things} for {n} weeks",
        "The small team in {place} that is rebuilding {topic}",
    ),
    "health": (
        "Do {things} really help? {Agents} weigh in",
        "{n} myths about {things}",
        "{Topic} after fifty: advice from {a_agent}",
        "Clinic in {place} tries {things} instead of {things2}",
    ),
    "arts": (
        "Exhibition in {place} celebrates {topic}",
        "{person} returns with {things} and no apologies",
        "The last {agents} of {place}",
        "Review: {things} steal the show in {place}",
    ),
    "film and tv": (
        "Review: {things} and {things2} in {person}'s new work",
        "The {n} best {things} ever put on screen",
        "{person} and the lost art of {topic}",
        "A new home for {topic} in {place}",
    ),
    "music": (
        "Live in {place}: {things} until the lights came on",
        "Album of the week: {person} trades {things2} for {things}",
        "{n} records to explain {topic} to a friend",
        "Young ears in {place} for {topic}",
    ),
    "money": (
        "{Things} explained in {n} minutes",
        "What {things} mean for families in {place}",
        "{Topic}: {n} mistakes that cost dearly",
        "{Agents} in {place} brace for {things}",
    ),
    "nature": (
        "{Things} are back in {place}",
        "A {weather} {season} for {things}",
        "Volunteers count {things} around {place}",
        "{Topic}: small steps that help {things}",
    ),
    "home": (
        "Before and after: {things} in a {place} home",
        "{n} ideas for {things}, none of them expensive",
        "Ask {a_agent}: {things} or {things2}?",
        "{Topic} made simple by {person}",
    ),
}

LEADS = (
    "In {place}, {agents} have spent a whole {season} on {things}, and the results are turning heads.",
    "{person} has been {a_agent} for {years} years and knows {things} better than most.",
    "Once for the few, talk of {topic} now fills halls in {place}, with {things} at the heart of it.",
    "A workshop in {place} shows how {things} and {things2} go together.",
    "Ask any {agent} about {things} and you will need a second cup of tea.",
    "From {place} to {place2}, a new generation discovers {topic}.",
    "Our reporter spent {n} days among {agents} in {place}, learning about {things}.",
    "Few subjects divide {agents} like {things}.",
    "It began with {things} in a borrowed shed outside {place}.",
    "Interest in {topic} has rarely been so great, and {things} are only part of the reason.",
)

FOLLOW_UPS = (
    "{person2} explains where to start and which {things2} to leave alone.",
    "Critics point to {things2}; admirers simply point to the queue.",
    "We look at what comes next for {topic}, and who will pay for it.",
    "With {things2} in short supply, patience matters more than money.",
    '"You learn it with your hands," says {person2}, surrounded by {things2}.',
    "A {weather} morning, a handful of {things2} and a little luck were enough.",
    "The {place} club now counts {hundreds} members, half of them newcomers.",
    "Along the way we meet {person2}, for whom {things2} are a way of life.",
    "Neighbours in {place2} have already copied the idea.",
    "The answer, it turns out, has a lot to do with {things2}.",
)

SEASONS = "spring, summer, autumn, winter"
WEATHERS = "grey, windy, golden, frosty, rainy, cloudless, pale, stormy"
NUMBERS = "three, four, five, six, seven, eight, nine, ten, twelve"
EVENTS = "cup, open, league, championship, trophy, derby"
