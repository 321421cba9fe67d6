"""What the demo's customers ask beside the topics: each once, so that nothing cached helps."""

from __future__ import annotations

from typing import NamedTuple


class Aside(NamedTuple):
    """A subject that no other row of the demo trace touches, and what there is to say about it."""

    subject: str
    answer: str


ASIDES: tuple[Aside, ...] = (
    Aside(
        "how rainbows form",
        "Sunlight looks white but holds every colour. When a beam enters a raindrop it "
        "bends, bounces once off the far wall and bends again on leaving, each hue by its "
        "own angle. Millions of drops together paint an arc, red outside and violet within. "
        "Stand with your back to the sun and the centre lies exactly opposite it.",
    ),
    Aside(
        "sourdough bread",
        "Mix flour and water in a jar, feed it daily, and within a week wild yeast makes it "
        "bubble. Knead a ladle of that starter into dough with salt, let it rise overnight "
        "in a cool kitchen, shape a round loaf and bake it in a very hot iron pot. Tapping "
        "the crust should sound hollow.",
    ),
    Aside(
        "why cats purr",
        "A cat purrs by twitching the muscles of its larynx some twenty-five times a second "
        "while breathing in and out. Kittens use it to tell their mother that the milk is "
        "flowing. Adults purr when content, yet also when hurt, and some vets believe that "
        "the vibration helps bones to mend.",
    ),
    Aside(
        "the history of tea",
        "Legend says leaves blew into an emperor's kettle five thousand years ago. Monks "
        "drank the brew to stay awake, caravans carried bricks of it across the desert, and "
        "clippers raced the first harvest to London. Taxes on it sparked a revolt in Boston "
        "harbour; today only water is drunk more widely.",
    ),
    Aside(
        "a poem about autumn",
        "The orchard lets its lanterns fall, one amber flame, then two, then all; a fox "
        "trots home along the lane, its whiskers pearled with silver rain. The swallows "
        "wrote their last goodbye in cursive on a copper sky, and smoke from someone's "
        "evening fire climbs slowly past the village spire.",
    ),
    Aside(
        "the rules of chess",
        "Two armies of sixteen face each other on sixty-four squares. Bishops glide "
        "diagonally, rooks straight, knights hop in an L, and the queen combines the first "
        "two. Pawns creep forward but strike sideways, and one that crosses the whole field "
        "is promoted. Trap the enemy king and you have won.",
    ),
    Aside(
        "growing tomatoes on a balcony",
        "Pick a dwarf kind, a deep tub and the sunniest corner. Plant the seedling up to "
        "its lowest leaves, tie it to a cane and pinch out the shoots in each armpit. Water "
        "the soil in the morning, never the foliage, and add potash when flowers open. "
        "Fruit ripens from July until frost.",
    ),
    Aside(
        "black holes",
        "When a massive star burns out, its core can collapse until nothing, light "
        "included, is fast enough to climb out. Around that horizon gas spirals inward and "
        "glows in X-rays. Clocks near it tick slowly. At the heart of our galaxy sits one "
        "that weighs as much as four million suns.",
    ),
    Aside(
        "learning the guitar",
        "Begin with three chords, G, C and D, which carry hundreds of folk songs. Press "
        "close behind the fret, strum from the wrist and change slowly to a metronome "
        "before speeding up. Ten minutes every evening beat two hours on Sunday. Fingertips "
        "hurt for a fortnight, then grow tough.",
    ),
    Aside(
        "the city of Venice",
        "Built on a hundred islets and millions of alder piles, Venice grew rich on pepper "
        "and silk. Gondolas are lopsided so that one oarsman can steer. Winter tides flood "
        "Saint Mark's, and movable barriers now rise from the lagoon floor. Get lost on "
        "purpose: every alley ends at water or a bakery.",
    ),
    Aside(
        "a bedtime story about a dragon",
        "Once a small green dragon could only sneeze bubbles. The others laughed until a "
        "drought set the forest ablaze. Pip took the deepest breath of her life and out "
        "came a thousand wobbling spheres, each filled with dew, that burst above the "
        "flames. Since that night no meadow feast begins without her.",
    ),
    Aside(
        "how vaccines work",
        "A vaccine shows the immune system a harmless piece of a germ. White blood cells "
        "study it, breed antibodies that fit its shape and file the pattern away for "
        "decades. If the true invader turns up, the defence starts within hours rather than "
        "weeks, often before one even feels feverish.",
    ),
    Aside(
        "running a marathon",
        "Give yourself eighteen weeks. Run four times in each, three of them at a pace "
        "where talking is easy, and stretch the long one from ten to thirty-two kilometres. "
        "Rest properly, eat rice and pasta before the race, start slower than you wish and "
        "sip at all stations. The wall comes near kilometre thirty-five.",
    ),
    Aside(
        "the Fibonacci numbers",
        "Start with one and one; each further member is the sum of its two predecessors: "
        "two, three, five, eight, thirteen. The ratio of neighbours tends to about 1.618, "
        "the golden section. Pine cones and sunflowers arrange their scales in such "
        "spirals, because that angle wastes the least room.",
    ),
    Aside(
        "octopuses",
        "An octopus has three hearts, blue blood and nine clusters of nerves, one for every "
        "arm besides the brain. It tastes with its suckers and squeezes through any gap "
        "wider than its beak. Skin cells change tint in a blink. Captive ones have "
        "unscrewed jars and crept across corridors to raid another tank.",
    ),
    Aside(
        "brewing good coffee",
        "Weigh sixty grams of beans for one litre, grind them right before use and rinse "
        "the paper filter. Pour a little water just off the boil, wait half a minute while "
        "the grounds swell, then add the remainder in slow circles. Bitter cups call for "
        "coarser grinding, sour ones for finer.",
    ),
    Aside(
        "the Northern Lights",
        "Storms on the sun hurl charged particles at Earth, whose magnetism funnels them to "
        "the poles. A hundred kilometres up they strike oxygen, which glows green or ruby, "
        "and nitrogen, which adds purple. Tromsø between September and March offers good "
        "odds; seek darkness, patience and woollen socks.",
    ),
    Aside(
        "a haiku about the sea",
        "Grey gull on a post; the tide erases my steps and hums as it works. Here is a "
        "second, for the evening: lighthouse, patient eye, counting all the ships that pass "
        "and keeping none of them. Both follow the custom of five, seven and five syllables "
        "and a hint of season.",
    ),
    Aside(
        "training a puppy",
        "Reward what you like within one second, using crumbs of chicken. Lure the nose "
        "upward and the rump sinks: say sit just then. Keep lessons under three minutes, "
        "finish on a success and take the pup outside after naps, meals and play. Chewed "
        "slippers mean boredom rather than spite.",
    ),
    Aside(
        "the Roman aqueducts",
        "Roman engineers led spring water across valleys using nothing but gravity. "
        "Channels dropped a hand's breadth per hundred paces, measured with a long wooden "
        "level. Arches at the Pont du Gard stand without mortar. Eleven such lines fed the "
        "capital's fountains, baths and even mock sea battles.",
    ),
    Aside(
        "saving money each month",
        "Have a fixed share, say a tenth, moved to a separate pot on payday, prior to "
        "spending anything. Note three weeks of expenses; surprises hide in snacks and "
        "forgotten apps. Build a cushion worth three salaries, then clear dear loans, then "
        "invest broadly. Raises should lift the share, not the lifestyle.",
    ),
    Aside(
        "how bees make honey",
        "Foragers suck nectar into a honey stomach, where enzymes split its sugars on the "
        "flight home. In the hive it travels from mouth to mouth and is hung in cells while "
        "thousands of wings fan it dry. Below eighteen percent moisture it keeps for "
        "centuries, and workers cap it using wax.",
    ),
    Aside(
        "planning a picnic",
        "Choose shade near, yet not beneath, old trees. Freeze bottles of lemonade "
        "overnight: they chill the salad and thaw by noon. Pack things that taste fine "
        "lukewarm, such as quiche, cherries, radishes and cold noodles. A blanket with a "
        "rubber underside, a corkscrew and wet cloths complete the basket.",
    ),
    Aside(
        "the moon landing",
        "In July 1969 a Saturn rocket lifted three astronauts out of Florida. Four days "
        "afterwards Armstrong steered the Eagle past boulders with seconds of fuel left. "
        "Aldrin joined him on the grey dust, they planted instruments, gathered twenty-one "
        "kilograms of rock and splashed down in the Pacific.",
    ),
    Aside(
        "writing a thank-you note",
        "Dear Ruth, your jam arrived on a gloomy Tuesday and turned breakfast into a "
        "celebration. How did you know that quince reminds me of grandmother's garden? I "
        "hid one glass from the children. Come and visit when the lilac blooms; there will "
        "be scones, and I promise to share. Yours fondly, Elsa.",
    ),
    Aside(
        "earthquakes",
        "Earth's crust is broken into plates that creep about as quickly as fingernails "
        "grow. Where they snag, strain piles up over decades and is released in a jolt. "
        "Fast pressure waves arrive first, slower shear waves shake walls. Duck below a "
        "sturdy table, hold on, and avoid lifts afterwards.",
    ),
    Aside(
        "baking apple pie",
        "Rub cold butter into flour until it looks like breadcrumbs, bind it with iced "
        "water and rest it. Slice tart apples, toss them with cinnamon, sugar and a "
        "spoonful of starch, heap them high and lay the lid on top. Cut vents, brush with "
        "egg and bake for fifty minutes until golden.",
    ),
    Aside(
        "the invention of printing",
        "Around 1450 a goldsmith in Mainz cast single letters from lead, tin and antimony, "
        "set them in frames and pressed inked lines onto damp paper with a converted wine "
        "press. A page that took a scribe all day now took minutes. Pamphlets spread "
        "quarrels, science and spelling over a continent.",
    ),
    Aside(
        "meditation",
        "Sit upright, let the gaze soften and notice the air at your nostrils. Thoughts "
        "will barge in; greet each like a passing cyclist and return to breathing. Five "
        "minutes suffice at first. Studies report calmer sleep and lower blood pressure "
        "after eight weeks, though nobody becomes a saint.",
    ),
    Aside(
        "how airplanes fly",
        "A wing pushes air downward and is itself pushed up: curved on top and tilted "
        "slightly, it makes the flow above quicker and thinner than underneath. Engines "
        "merely supply speed. Flaps enlarge the wing for landing, rudder and ailerons "
        "steer, and the tail keeps the nose from bobbing.",
    ),
    Aside(
        "a limerick about a baker",
        "A baker who hailed from Peru once kneaded his hat in the stew; it rose in the "
        "heat, grew ginger feet, and waltzed with a pot of fondue. The mayor declared it a "
        "sight, the fiddlers kept playing all night, till somebody cried that the crust was "
        "well fried, and everyone asked for a bite.",
    ),
    Aside(
        "desert plants",
        "Cacti swap leaves for spines, store rain in pleated stems and open their pores "
        "only after sunset. Mesquite drills roots fifty metres deep. Some seeds wear a coat "
        "that dissolves after exactly enough drizzle, then sprout, flower and die inside "
        "three weeks, painting dunes pink for a moment.",
    ),
    Aside(
        "choosing a bicycle",
        "Decide where you ride most. Asphalt commutes want thin tyres, mudguards and hub "
        "gears; gravel asks for wide rubber and disc brakes. Stand over the tube with both "
        "soles flat and two fingers of clearance. Borrow one for an afternoon, since "
        "saddles reveal their character only after an hour.",
    ),
    Aside(
        "Shakespeare",
        "A glover's son from Stratford wrote about thirty-eight plays and 154 sonnets. "
        "Groundlings paid a penny to stand in the Globe and threw nuts at bad villains. He "
        "coined or first recorded words such as lonely, bedazzled and swagger. No "
        "manuscript survives; two fellow actors saved half of his dramas.",
    ),
    Aside(
        "volcanoes",
        "Molten rock rises because it is lighter than its surroundings. Runny basalt pours "
        "out gently, as on Hawaii, whereas sticky magma traps steam until the summit "
        "explodes. Ash fertilises vineyards, cools whole summers and grounds jets. Roughly "
        "fifty eruptions are noted annually, mostly beneath oceans.",
    ),
    Aside(
        "sleeping better",
        "Rise at the same hour even at weekends, catch daylight before ten and stop "
        "caffeine after lunch. Dim lamps at nine, leave screens in the hallway and cool the "
        "bedroom to eighteen degrees. If you lie awake, get up and read something dull. "
        "Alcohol knocks you out but ruins the second half.",
    ),
    Aside(
        "penguins",
        "Emperor penguins breed in the Antarctic winter. The male balances a single egg on "
        "his feet beneath a fold of belly for nine weeks without eating, huddled among "
        "thousands who take turns at the windy edge. Females return fat with krill and find "
        "their mate by his voice alone.",
    ),
    Aside(
        "a riddle for children",
        "I have cities without houses, forests without trees and rivers in which nobody "
        "swims. Fold me and I fit in a pocket, spread me and I cover a table. Sailors trust "
        "me, pirates mark me using crosses, and drivers quarrel above me. What am I? Turn "
        "the page around: a map, of course.",
    ),
    Aside(
        "the water cycle",
        "Heat lifts vapour off oceans and leaves. High above, it cools on specks of dust "
        "and gathers into droplets, a million to a single raindrop. Some seeps underground "
        "for ages, some rushes to rivers, some rests as glacier ice. A molecule spends nine "
        "days aloft, then joins the journey afresh.",
    ),
    Aside(
        "juggling three balls",
        "Throw one ball in an arc at eye height and catch it with the other hand; repeat "
        "until it bores you. Take two: release the second when the first peaks, underneath "
        "its path. With three, simply continue. Stand at a bed so that dropping costs less "
        "bending, and never look at your palms.",
    ),
    Aside(
        "jazz music",
        "Born in New Orleans out of ragtime, blues and marching bands, jazz lives by swing "
        "and surprise. Players agree on a tune, then recompose it aloud, answering one "
        "another in real time. Armstrong made the solo a story, Ellington the orchestra a "
        "palette, Davis made silence itself sound cool.",
    ),
    Aside(
        "packing for a mountain hike",
        "Wear layers: wool next to skin, fleece, then a shell against wind. Carry a paper "
        "chart, headlamp, whistle, plasters, two litres to drink and more nuts than seem "
        "sensible. Heavy stuff sits close to your spine. Turn back at noon if clouds build "
        "towers, and tell someone your route beforehand.",
    ),
    Aside(
        "how a fridge works",
        "A compressor squeezes a gas, which becomes hot and sheds that warmth through coils "
        "on the rear. Now liquid, it passes a narrow valve, evaporates inside the cabinet "
        "and soaks up heat from your lettuce. Then the loop repeats. So it moves heat "
        "rather than making cold, and the kitchen gets warmer.",
    ),
    Aside(
        "the Great Wall",
        "It is no single wall but many, raised over two millennia of rammed earth, brick "
        "and sticky rice mortar. Beacon towers relayed smoke signals faster than a rider. "
        "Soldiers grew cabbages beside their posts. Despite the rumour it cannot be seen "
        "from orbit with bare eyes, being narrower than a motorway.",
    ),
)
