"""The subjects of the generated demo catalogue: category, then subcategory, then `topic | agent | four plural things`.

Everything here was written for this project. An agent's plural is regular. demo.py reads it, together with the names
and sentence forms of demo_words.py.
"""

SUBJECTS = """
sports
  water sports
    dinghy racing | sailor | gusty regattas, carbon masts, tidal starts, capsize drills
    open water swimming | swimmer | cold lake crossings, bright tow floats, dawn relays, channel attempts
    river rowing | rower | coxed eights, winter head races, sliding seats, blistered hands
    surfing | surfer | reef breaks, foam longboards, autumn swells, patched wetsuits
  endurance
    marathon running | runner | negative splits, carbon shoes, long Sunday runs, race bibs
    gravel cycling | cyclist | tubeless tyres, forest tracks, bikepacking bags, mountain stages
    triathlon | triathlete | transition racks, brick sessions, aero helmets, age-group medals
    fell running | fell runner | muddy ridges, map checkpoints, steep descents, village races
  ball games
    village cricket | spin bowler | leg-spin spells, tea intervals, last-wicket stands, rolled pitches
    women's football | striker | penalty shoot-outs, academy trials, promotion battles, cup replays
    table tennis | paddle player | spin serves, league nights, folding tables, rubber bats
    basketball | point guard | buzzer beaters, fast breaks, playground courts, three-point streaks
  winter sports
    cross-country skiing | skier | waxed skis, groomed loops, night races, altitude camps
    ice hockey | goaltender | power plays, frozen ponds, overtime goals, rookie drafts
    curling | curler | sweeping brooms, granite stones, double takeouts, club bonspiels
    ski touring | ski tourer | avalanche beacons, powder bowls, hut traverses, spring summits
food
  baking
    sourdough bread | baker | rye starters, blistered crusts, overnight proofs, hearth loaves
    layered pastry | pastry cook | butter croissants, almond tarts, laminated doughs, glazed buns
    celebration cakes | cake maker | sponge tiers, sugar flowers, lemon fillings, birthday orders
    flatbreads | flatbread cook | clay ovens, sesame rounds, stuffed parathas, charcoal griddles
  cooking
    vegetarian cooking | home cook | roasted squashes, lentil stews, herb sauces, chickpea suppers
    noodle soups | noodle cook | bone broths, hand-pulled noodles, chilli oils, soft eggs
    grilling and smoking | pit master | oak fires, slow briskets, spice rubs, smoked peppers
    preserving | jam maker | plum jams, pickled beets, fermented cabbages, sealed jars
  drinks
    specialty coffee | barista | light roasts, pour-over cones, espresso grinders, washed beans
    natural wine | winemaker | skin-contact whites, old vineyards, amphora cellars, cloudy bottles
    craft brewing | brewer | hoppy ales, oak barrels, sour beers, copper kettles
    tea growing | tea grower | terraced gardens, first flushes, rolled leaves, smoky blends
  restaurants
    neighbourhood bistros | restaurateur | chalkboard menus, corner tables, set lunches, open kitchens
    street food | stall holder | night markets, folded tacos, dumpling carts, paper plates
    fine dining | head chef | tasting menus, seasonal courses, starred kitchens, tableside sauces
    seafood kitchens | fishmonger | oyster bars, grilled sardines, dayboat catches, crab rolls
travel
  rail journeys
    night trains | conductor | sleeper cabins, dining cars, border crossings, dawn arrivals
    mountain railways | train driver | rack climbs, stone viaducts, panorama coaches, snow tunnels
    steam heritage lines | stoker | restored locomotives, brass whistles, volunteer crews, coal tenders
    interrail summers | backpacker | rail passes, hostel bunks, missed connections, station lockers
  islands
    ferry hopping | ferry captain | deck passengers, harbour towns, timetable gaps, turquoise coves
    northern archipelagos | islander | painted cabins, puffin cliffs, midnight suns, fishing hamlets
    volcanic islands | volcano guide | black beaches, crater walks, lava fields, hot springs
    lighthouse stays | lighthouse keeper | spiral stairs, storm watches, fog horns, clifftop rooms
  hiking
    long-distance trails | hiker | mountain huts, trail markers, blister kits, ridge paths
    pilgrim paths | pilgrim | scallop shells, chapel bells, shared dormitories, stamped passports
    canyon walks | canyon guide | slot gorges, rope bridges, desert camps, sandstone arches
    family walking | rambler | picnic meadows, pushchair loops, farm gates, riverside paths
  city breaks
    museum weekends | museum guide | late openings, sculpture courts, gallery passes, quiet cloisters
    market towns | market trader | cobbled squares, antique stalls, cheese counters, guildhalls
    rooftop views | tour guide | observation decks, tiled roofs, sunset terraces, cable cars
    canal cities | gondolier | humpback bridges, houseboats, canal tours, waterside cafés
science
  astronomy
    comet watching | amateur astronomer | green comets, dark-sky parks, tripod binoculars, meteor showers
    exoplanets | planet hunter | transit dips, rocky worlds, watery skies, distant dwarf stars
    radio telescopes | radio astronomer | pulsar signals, dish arrays, cosmic bursts, quiet valleys
    moon missions | mission engineer | lunar landers, crater maps, rover wheels, ice deposits
  life sciences
    coral genetics | marine biologist | reef nurseries, heat-tolerant corals, spawning nights, bleached shoals
    honeybee research | entomologist | waggle dances, hive sensors, pollen maps, queen lineages
    gene editing | geneticist | molecular scissors, wheat strains, inherited disorders, careful trials
    fungal networks | mycologist | root threads, spore prints, forest soils, edible mushrooms
  earth sciences
    volcanology | volcanologist | magma chambers, ash clouds, gas readings, sleeping craters
    glacier science | glaciologist | ice cores, meltwater lakes, retreating tongues, drill camps
    fossil hunting | palaeontologist | dinosaur footprints, amber insects, quarry digs, feathered skeletons
    earthquake forecasting | seismologist | fault lines, tremor alarms, shaking maps, deep boreholes
  physics
    quantum physics | quantum physicist | entangled photons, cold atoms, laser traps, fragile qubits
    particle physics | particle physicist | muon beams, detector rings, rare decays, missing neutrinos
    fusion energy | plasma physicist | magnet coils, plasma pulses, tritium blankets, stellarator rings
    atomic clocks | metrologist | optical lattices, strontium ticks, leap seconds, satellite timings
technology
  gadgets
    mechanical keyboards | keyboard builder | brass switches, split layouts, keycap sets, foam dampers
    home cameras | camera tester | doorbell lenses, motion alerts, privacy shutters, local recorders
    wearables | product tester | sleep trackers, smart rings, heart sensors, week-long batteries
    e-readers | gadget reviewer | paper-like screens, library loans, stylus notes, warm front lights
  software
    open source software | maintainer | bug trackers, release notes, volunteer patches, unpaid weekends
    privacy tools | privacy engineer | password managers, encrypted chats, tracker blockers, data leaks
    programming languages | programmer | type systems, compiler errors, garbage collectors, package registries
    local language models | model tinkerer | quantized weights, laptop chatbots, prompt recipes, open checkpoints
  transport
    electric cars | motorist | charging corridors, solid-state batteries, winter ranges, used models
    cargo bikes | courier | school runs, delivery hubs, front boxes, electric motors
    drones | drone pilot | survey flights, parcel drops, no-fly zones, thermal cameras
    autonomous buses | fleet engineer | lidar sensors, safety drivers, campus loops, night routes
  games
    indie video games | game designer | pixel worlds, cosy puzzles, farming simulators, small studios
    strategy games | strategist | hex maps, turn timers, empire builders, modding communities
    retro consoles | collector | cartridge shelves, tube televisions, speed runs, repaired joysticks
    board games | board gamer | wooden meeples, co-operative campaigns, rule books, games cafés
health
  fitness
    yoga | yoga teacher | morning flows, balance poses, breathing exercises, cork mats
    strength training | weightlifter | kettlebell circuits, deadlift records, garage gyms, recovery days
    walking for health | walker | step counts, lunchtime loops, Nordic poles, green prescriptions
    pilates | pilates instructor | reformer classes, core exercises, stiff backs, slow stretches
  nutrition
    plant-based diets | dietitian | protein swaps, oat milks, iron levels, bean dishes
    gut health | gastroenterologist | friendly bacteria, kefir cultures, fibre targets, fermented foods
    sugar reduction | nutritionist | hidden sugars, school lunches, soft drinks, label checks
    meal planning | meal planner | freezer portions, shopping lists, weekday dinners, lunch boxes
  mind
    sleep | sleep researcher | jet lags, bedtime routines, sleepless nights, circadian lights
    meditation | meditation teacher | silent retreats, breathing apps, wandering thoughts, short sittings
    burnout | occupational doctor | overfull calendars, weekend emails, quiet quitters, recovery plans
    grief and memory | counsellor | memory boxes, talking circles, hard anniversaries, handwritten letters
  medicine
    vaccines | immunologist | booster doses, trial results, flu seasons, cold chains
    heart health | cardiologist | blood pressures, stent repairs, rhythm monitors, warning signs
    dentistry | dentist | night guards, gum checks, ceramic crowns, milk teeth
    eye care | optometrist | screen breaks, retina scans, cataract lenses, children's glasses
arts
  painting
    watercolour | watercolourist | wet washes, pocket palettes, misty landscapes, rough papers
    portrait painting | portraitist | patient sitters, oil sketches, royal commissions, self-portraits
    street murals | muralist | spray cans, gable walls, scaffold towers, neon animals
    icon restoration | restorer | gilded panels, cracked varnishes, chapel ceilings, cotton swabs
  craft
    pottery | potter | wood-fired kilns, ash glazes, wobbly bowls, porcelain cups
    weaving | weaver | floor looms, indigo yarns, tapestry patterns, wool blankets
    woodworking | joiner | dovetail joints, hand planes, oak benches, carved spoons
    letterpress printing | printer | lead types, linen papers, hand-cranked presses, wedding cards
  books
    crime fiction | crime writer | locked rooms, weary inspectors, small-town secrets, plot twists
    historical novels | novelist | court intrigues, wartime letters, forgotten queens, family sagas
    poetry | poet | prose poems, open-mic nights, rhyming couplets, pamphlet presses
    children's books | illustrator | picture books, bedtime rhymes, talking foxes, paper dragons
  stage
    ballet | dancer | pointe shoes, gala premieres, rehearsal studios, winter tours
    community theatre | director | village halls, amateur casts, painted sets, prompt corners
    opera | soprano | gala arias, surtitle screens, open-air stages, baroque revivals
    puppetry | puppeteer | shadow screens, string marionettes, giant foxes, wooden hands
film and tv
  film genres
    science fiction films | film-maker | generation ships, time loops, android detectives, practical effects
    documentaries | documentarian | archive reels, whistle-blowers, long interviews, hidden cameras
    animated films | animator | hand-drawn frames, stop-motion puppets, talking animals, story boards
    horror films | horror director | haunted houses, jump scares, creaking doors, final girls
  series
    crime series | showrunner | cold cases, weary detectives, cliffhanger endings, foggy harbours
    period dramas | costume designer | corset fittings, country estates, candlelit balls, royal scandals
    cooking shows | show judge | signature bakes, collapsed soufflés, blind tastings, tearful finals
    sitcoms | comedy writer | laugh tracks, flatshare jokes, running gags, awkward dinners
  cinema culture
    independent cinemas | projectionist | 35-millimetre prints, velvet seats, midnight screenings, members' nights
    film festivals | festival programmer | red carpets, jury prizes, debut features, standing ovations
    silent film | film archivist | tinted reels, live pianists, slapstick chases, nitrate cans
    film music | film composer | string themes, synthesiser scores, recording stages, leitmotifs
  people
    stunt work | stunt performer | wire falls, car rolls, fire suits, padded landings
    voice acting | voice actor | audio booths, cartoon villains, dubbed classics, game characters
    child actors | casting agent | open auditions, school tutors, first roles, proud parents
    screenwriting | screenwriter | third acts, spec scripts, writers' rooms, sharp dialogues
music
  classical
    string quartets | violinist | late quartets, gut strings, chamber halls, encore pieces
    choral singing | choir leader | evening masses, alto sections, cathedral echoes, workplace choirs
    piano | pianist | nocturnes, concert grands, competition finals, practice rooms
    early music | lutenist | viols, dance suites, handwritten scores, candlelit concerts
  bands
    indie rock | guitarist | basement gigs, jangly guitars, debut albums, van tours
    heavy metal | drummer | double kick drums, festival mosh pits, concept albums, leather jackets
    folk music | fiddler | session tunes, ballad singers, harvest songs, accordion reels
    jazz | saxophonist | smoky clubs, modal solos, rhythm sections, late sets
  electronic
    modular synthesis | synth builder | patch cables, analogue filters, drifting oscillators, ambient drones
    techno | disc jockey | warehouse nights, drum machines, vinyl crates, sunrise sets
    ambient music | sound artist | field recordings, tape loops, whispering choirs, long fades
    hip-hop | rapper | sampled breaks, freestyle battles, mixtape drops, spoken verses
  gear and listening
    vinyl collecting | record dealer | first pressings, crate digs, gatefold sleeves, listening bars
    instrument making | luthier | spruce tops, bent ribs, scroll carvings, hide glues
    home recording | sound engineer | ribbon microphones, bedroom studios, plug-in effects, mixing desks
    headphones | audio reviewer | planar drivers, noise cancellers, leather pads, pocket amplifiers
money
  personal finance
    household budgets | budget coach | envelope systems, energy bills, rainy-day funds, subscription traps
    pensions | pension adviser | retirement ages, annuity rates, workplace schemes, late starters
    mortgages | mortgage broker | fixed rates, first deposits, offset loans, survey fees
    student debt | campus adviser | loan thresholds, maintenance grants, part-time jobs, rent guarantees
  investing
    index funds | fund manager | tracker fees, dividend years, bear markets, patient savers
    property investing | landlord | rental yields, renovation costs, empty shops, tenant rights
    start-up funding | venture investor | seed rounds, pitch decks, angel networks, cash burns
    green bonds | bond trader | wind-farm coupons, climate pledges, audit trails, city issues
  work
    remote work | team manager | kitchen desks, video meetings, four-day weeks, village hubs
    apprenticeships | apprentice | tool belts, training wages, master craftsmen, day-release courses
    career changes | career coach | second acts, evening classes, mid-life leaps, honest interviews
    trade unions | shop steward | wage talks, picket lines, shift patterns, safety rules
  business
    family firms | factory owner | succession plans, workshop floors, export orders, loyal customers
    independent shops | shopkeeper | window displays, Saturday queues, rent reviews, loyalty cards
    farming business | farmer | milk prices, harvest contracts, vegetable boxes, barn conversions
    craft exports | exporter | customs forms, container rates, trade fairs, gift catalogues
nature
  wildlife
    garden birds | birdwatcher | nest boxes, winter feeders, blackbird songs, migrating swifts
    wolves | wildlife ranger | howling packs, camera traps, shepherd dogs, forest corridors
    whales | whale spotter | humpback songs, breaching calves, research yachts, stranded pods
    butterflies | lepidopterist | meadow surveys, swallowtail wings, nectar plants, painted ladies
  gardening
    vegetable growing | allotment holder | raised beds, runner beans, heirloom tomatoes, compost heaps
    rose growing | rose grower | climbing roses, pruning cuts, scented borders, greenfly remedies
    wildflower meadows | gardener | seed mixes, scything days, poppy banks, yellow rattles
    houseplants | plant collector | variegated leaves, propagation jars, fungus gnats, trailing vines
  weather
    storm chasing | storm chaser | supercell clouds, lightning maps, hail stones, radar loops
    flood protection | flood engineer | river gauges, sandbag walls, wetland buffers, evacuation plans
    heatwaves | climatologist | shaded streets, cooling centres, record nights, parched fields
    snow seasons | avalanche forecaster | deep drifts, snow depths, plough crews, late thaws
  conservation
    river restoration | river keeper | beaver dams, salmon ladders, gravel beds, removed weirs
    peatlands | peat scientist | sphagnum mosses, blocked ditches, carbon stores, curlew nests
    urban trees | arborist | street limes, hollow oaks, planting days, leaf canopies
    marine reserves | reef warden | seagrass beds, fishing limits, lobster nurseries, patrol boats
home
  design
    small flats | interior designer | fold-down beds, hidden cupboards, mirrored walls, sleeping lofts
    vintage furniture | furniture dealer | teak sideboards, flea-market chairs, brass lamps, velvet sofas
    lighting | lighting designer | paper lanterns, dimmer switches, reading lamps, warm bulbs
    wallpaper and colour | decorator | botanical prints, limewash walls, bold ceilings, paint charts
  building
    old house repair | stonemason | lime mortars, sash windows, sagging beams, slate roofs
    passive houses | architect | triple glazings, airtight walls, solar roofs, timber frames
    heat pumps | heating engineer | underfloor pipes, noise limits, subsidy forms, buffer tanks
    tiny houses | house builder | trailer frames, composting toilets, ladder lofts, off-grid panels
  family
    new parents | midwife | feeding charts, baby slings, sleepless weeks, name lists
    teenagers | youth worker | phone rules, exam nerves, slammed doors, skate parks
    grandparents | family researcher | story evenings, photo albums, shared allotments, holiday visits
    adoption | social worker | first meetings, life-story books, waiting lists, support groups
  pets
    dog training | dog trainer | recall whistles, puppy classes, treat pouches, agility tunnels
    cats | vet | scratching posts, indoor hunters, window perches, adopted strays
    aquariums | aquarist | planted tanks, neon tetras, driftwood scapes, shrimp colonies
    backyard chickens | hen keeper | speckled hens, mobile coops, fox fences, blue eggs
"""
